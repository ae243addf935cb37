#!/bin/sh
# aes.sh N CIPHER: N times the block, enciphered, then a text whose cipher text is printed
n=$1
key="-K 000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000001"
while [ "$n" -gt 0 ]; do
    # shellcheck disable=SC2086
    openssl enc "$2" $key -bufsize 262144 -in /tmp/block -out /dev/null 2>/dev/null
    n=$((n - 1))
done
# shellcheck disable=SC2086
openssl enc "$2" $key -in /data/program.c 2>/dev/null
