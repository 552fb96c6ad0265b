#!/bin/sh
# Packs what `benchmarks/gpu.py` needs on a lent machine without a network: wheels of the packages
# that an image with torch usually lacks, and some scans for the cells.
#   benchmarks/gpu_pack.sh [FOLDER OF btcv_ct] [OUT]
# There, each part of the scans in a call of its own if they exceed what may travel:
#   python3 -m pip install --no-index --no-deps --target /tmp/site .gpu/wheels/*.whl
#   export PYTHONPATH=/tmp/site:.
#   python3 benchmarks/packed_scans.py unpack --data .gpu/scans_1.zip --out /tmp/scans
#   python3 benchmarks/gpu.py --data /tmp/scans --out OUT
# An own GPU with an ordinary environment needs none of this: `make gpu` there.
set -eu
data=${1:-../shared/data/btcv_ct}
out=${2:-.gpu}
python=${PYTHON:-python3}
here=$(dirname "$0")
mkdir -p "$out/wheels"
# pure Python; no itk, a hundred megabytes that read DICOM, of which there is none here
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
  --dest "$out/wheels" monai==1.6.1 nibabel==5.4.2 pytorch-ignite==0.5.5 fire==0.7.1 \
  termcolor==3.3.0 submitit==1.5.4
if [ -d "$data" ]; then
  PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" "$python" "$here/packed_scans.py" pack \
    --data "$data" --out "$out" --parts 2
else
  echo "There are no scans in $data: the cells are left out."
fi
du -sh "$out"
