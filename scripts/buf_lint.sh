#!/usr/bin/env bash
# Lint protos/ with buf, by the rules in buf.yaml.
# Usage: scripts/buf_lint.sh PYTHON
#
# Uses the buf in .buf/, else one on PATH, else installs it into .buf/ with npm; skipped if there is no npm. buf reads an
# image made by our own protoc, since fetching google/rpc/status.proto from buf's registry would need another network
# connection and an account's rate limit.
set -euo pipefail
cd "$(dirname "$0")/.."

version=1.75.0
python=$1
buf=.buf/node_modules/.bin/buf
if [ ! -x "$buf" ]; then
    if command -v buf >/dev/null; then
        buf=buf
    elif ! command -v npm >/dev/null; then
        echo "SKIP: buf lint, since neither buf nor npm is installed"
        exit 0
    else
        echo "Installing buf $version into .buf/ with npm: about 95 MB on disk, once"
        mkdir -p .buf
        if ! npm install --prefix .buf --no-save --no-audit --no-fund --loglevel=error \
            --fetch-retries=1 --fetch-timeout=60000 "@bufbuild/buf@$version"; then
            [ "${CI:-}" = true ] && exit 1
            echo "SKIP: buf lint, since npm could not install it"
            exit 0
        fi
    fi
fi
image=$(mktemp -d)
trap 'rm -rf "$image"' EXIT
"$python" scripts/proto.py --image "$image/image.binpb"
"$buf" lint "$image/image.binpb" --config buf.yaml --path embedserve/v1
echo "buf lint: no findings"
