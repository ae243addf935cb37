#!/bin/sh
# repeat.sh N COMMAND...: what the last of N runs prints
n=$1
shift
while [ "$n" -gt 1 ]; do "$@" >/dev/null; n=$((n - 1)); done
exec "$@"
