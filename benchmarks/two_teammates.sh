#!/usr/bin/env bash
# Two teammates share one teacher: two environments with homes of their own, two copies of the images (Bo's are renamed,
# later he has 50 more), one S3 store, which is moto's on loopback. Prints what docs/share.md shows.
# ANN and BO are environments with softlabel and its extra `s3`; MOTO is the `moto_server` of any. IMAGES is a folder of
# splits and classes; 50 of its train images are those that only Bo has. He has no teacher before he has these.
# Run: benchmarks/two_teammates.sh ANN BO MOTO IMAGES TEACHER WORK
set -euo pipefail
ann=$1 bo=$2 moto=$3 images=$(realpath "$4") teacher=$(realpath "$5") work=$6
mkdir -p "$work"/{ann,bo}/home
work=$(realpath "$work")

"$moto" -H 127.0.0.1 -p 5599 > "$work/moto.log" 2>&1 &
trap 'kill $!' EXIT
export AWS_ENDPOINT_URL=http://127.0.0.1:5599 AWS_ACCESS_KEY_ID=team AWS_SECRET_ACCESS_KEY=secret AWS_DEFAULT_REGION=us-east-1
"$bo/bin/python" - << 'PYTHON'
import time
import s3fs
for _ in range(60):
    try:
        s3fs.S3FileSystem().mkdir("team")
        break
    except OSError:
        time.sleep(0.5)
PYTHON

"$bo/bin/python" - "$images" "$work" << 'PYTHON'
import shutil, sys
from pathlib import Path
images, work = map(Path, sys.argv[1:])
files = sorted(path for path in images.glob("*/*/*") if path.is_file())
train = [path for path in files if path.parts[-3] == "train"]
only_bo = set(train[:: max(1, len(train) // 50)][:50])
for number, path in enumerate(files):
    split, kind = path.parts[-3:-1]
    folder = "new" if path in only_bo else "pictures"
    targets = [work / "bo" / folder / split / kind / f"bo-{number:05d}{path.suffix}"]
    targets += [work / "ann" / "skin" / split / kind / path.name] * (path not in only_bo)
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
PYTHON
cp -r "$teacher" "$work/ann/teacher"
sleep 3

as() {  # as NAME ENVIRONMENT WORDS...: in their folder, at home there, with their softlabel
  local name=$1 environment=$2
  shift 2
  echo "$name\$ $*"
  (cd "$work/$name" && HOME="$work/$name/home" PATH="$environment/bin:$PATH" "$@" 2>&1 < /dev/null)
  echo
}
as ann "$ann" softlabel cache build skin -o t.h5 --teacher teacher
as ann "$ann" softlabel cache push t.h5 s3://team/caches --yes

as bo "$bo" ls
as bo "$bo" softlabel cache list s3://team/caches
id=$(cd "$work/bo" && HOME="$work/bo/home" "$bo/bin/softlabel" cache list s3://team/caches | awk 'END { print $NF }')
as bo "$bo" softlabel cache pull "s3://team/caches/$id" -o t.h5
train=(--student shufflenet_v2_x0_5 --student-size 64 --epochs 3 --anyway)
as bo "$bo" softlabel train pictures t.h5 -o run "${train[@]}"

cp -r "$work/bo/new/train" "$work/bo/pictures/"
as bo "$bo" softlabel train pictures t.h5 -o more "${train[@]}" || true
cp -r "$teacher" "$work/bo/teacher"
as bo "$bo" softlabel cache build pictures -o all.h5 --teacher teacher --store s3://team/caches --yes
as bo "$bo" softlabel train pictures all.h5 -o more "${train[@]}"
as bo "$bo" softlabel cache list s3://team/caches

as ann "$ann" softlabel cache build skin -o again.h5 --teacher teacher --store s3://team/caches --yes
