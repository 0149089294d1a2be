# Ask for addresses until one answers, or bring the file behind the first. Any shell; the last line says what is wrong.
# $1 where the file is to be, or nothing; $2 its SHA-256, or nothing; $3 $4 seconds for the whole and for an answer; $5... addresses
place=$1 wanted=$2 limit=$3 patience=$4
shift 4
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
stop() { echo "$1"; exit 1; }
why() { tail -n 1 "$work/why"; }
sum_of() { sha256sum "$1" 2>/dev/null | cut -d ' ' -f 1; }
cat >"$work/get.py" <<'PYTHON'
import shutil
import sys
try:
    from urllib.request import Request, urlopen
except ImportError:  # Python 2
    from urllib2 import Request, urlopen
address, place, part, patience = sys.argv[1:]
try:
    answer = urlopen(Request(address, headers={"Range": "bytes=0-0"} if part else {}), timeout=int(patience))
    with open(place, "wb") as out:
        shutil.copyfileobj(answer, out)
except Exception as error:
    sys.exit(str(error))
PYTHON

# get ADDRESS FILE [part]: with `part` the first byte suffices.
get() {
    case $1 in file://*) cp "${1#file://}" "$2" 2>"$work/why"; return ;; esac
    if command -v curl >/dev/null 2>&1; then
        curl -fsSL --connect-timeout "$patience" --max-time "$limit" ${3:+-r 0-0} -o "$2" "$1" 2>"$work/why"
        return
    fi
    if command -v wget >/dev/null 2>&1; then
        wget -nv -t 1 -T "$patience" ${3:+--header='Range: bytes=0-0'} -O "$2" "$1" 2>"$work/why"
        return
    fi
    for python in python3 python /usr/libexec/platform-python /opt/apparate/current/bin/python3; do
        if command -v "$python" >/dev/null 2>&1; then
            "$python" "$work/get.py" "$1" "$2" "${3:-}" "$patience" 2>"$work/why"
            return
        fi
    done
    if [ -x /usr/lib/apt/apt-helper ]; then
        /usr/lib/apt/apt-helper download-file "$1" "$2" >"$work/why" 2>&1
        return
    fi
    echo 'this host has neither curl, wget, Python nor apt-helper' >"$work/why"
    return 1
}

if [ -z "$place" ]; then
    first=$1
    for address in "$@"; do
        get "$address" "$work/part" part && exit 0
    done
    stop "$first does not answer ($(why))"
fi
[ -z "$wanted" ] || [ "$(sum_of "$place")" != "$wanted" ] || exit 0
folder=$(dirname "$place")
made=
[ -d "$folder" ] || { mkdir -p "$folder" || stop "$folder cannot be made"; made=yes; }
undo() { rm -f "$place.part"; [ -z "$made" ] || rmdir "$folder"; }
get "$1" "$place.part" || { undo; stop "$1 cannot be fetched ($(why))"; }
came=$(sum_of "$place.part")
[ -z "$wanted" ] || [ "$came" = "$wanted" ] || { undo; stop "$1 has checksum sha256:$came, not sha256:$wanted"; }
mv -f "$place.part" "$place"
echo fetched
