#!/bin/sh
# audit-tls.sh RINGRESS [FOLDER]: starts it with one TLS listener of default settings and a fresh certificate, and
# prints what testssl.sh (all its checks) and sslyze find. sslyze is put into FOLDER/audit, target/audit by default.
# Fails when a tool does not come to its end.
set -eu

ringress=$1
folder=${2:-target}/audit
mkdir -p "$folder"
work=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null || true; rm -rf "$work"' EXIT

if ! [ -x "$folder/venv/bin/sslyze" ]; then
    echo "installing sslyze into $folder/venv"
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet sslyze
fi

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=CA:FALSE \
    -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null

# Free at the moment.
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
web=$(port)
app=$(port)
echo "a page" >"$work/index.html"
python3 -m http.server --directory "$work" --bind 127.0.0.1 "$app" >/dev/null 2>&1 &
pids=$!
cat >"$work/ringress.toml" <<END
[listeners.web]
bind = "127.0.0.1:$web"
upstream = "app"
tls = { certificates = [{ cert = "cert.pem", key = "key.pem" }] }

[upstreams.app]
backends = ["127.0.0.1:$app"]

[runtime]
control_socket = "off"
END
"$ringress" run -c "$work/ringress.toml" 2>"$work/log" &
pids="$pids $!"
until grep -q started "$work/log"; do
    kill -0 "${pids##* }" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done

echo "== testssl.sh: every finding that is not OK"
testssl --quiet --color 0 --warnings off --nodns none --jsonfile "$work/testssl.json" \
    "127.0.0.1:$web" >"$folder/testssl.txt" 2>&1 || true
python3 - "$work/testssl.json" <<'END'
import json, sys
findings = json.load(open(sys.argv[1]))
assert any(it["id"] == "scanTime" for it in findings), "testssl.sh has not come to its end"
for it in findings:
    if it["severity"] not in ("OK", "INFO"):
        print(f'{it["severity"]:9} {it["id"]}: {it["finding"]}')
END

echo "== sslyze, against Mozilla's intermediate profile"
"$folder/venv/bin/sslyze" --mozilla_config=intermediate "localhost:$web" >"$folder/sslyze.txt" 2>&1 || true
grep -q "SCANS COMPLETED" "$folder/sslyze.txt" || { cat "$folder/sslyze.txt" >&2; exit 1; }
sed -n '/COMPLIANCE AGAINST/,$p' "$folder/sslyze.txt"
echo "== in full: $folder/testssl.txt, $folder/sslyze.txt"
