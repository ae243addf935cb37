#!/bin/sh
# sign.sh N: N RSA signatures of 8192 bits, which do not depend on chance (PKCS #1 v1.5)
n=$1
while [ "$n" -gt 0 ]; do openssl dgst -sha256 -sign /data/rsa.pem -hex /data/list; n=$((n - 1)); done
