#!/bin/sh
zstd -q -c /data/text >/tmp/text.zst
n=$1
while [ "$n" -gt 0 ]; do zstd -q -d -f -o /dev/null /tmp/text.zst; n=$((n - 1)); done
zstd -q -d -c /tmp/text.zst
