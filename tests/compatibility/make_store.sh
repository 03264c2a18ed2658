#!/usr/bin/env bash
# Makes store.tar.xz: a store, packs, an export and published runs, as the code of one commit writes them.
# usage: make_store.sh CLONE ; CLONE is a clone of this repository at that commit (162d06f for the present store.tar.xz)
set -euo pipefail
clone=$(realpath "$1")
here=$(realpath "$(dirname "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unset MLFLOW_TRACKING_URI
export PYTHONPATH=$clone BENCH_CACHE=$work/cache OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
bench() { python -m bench "$@"; }

data=(--set dataset=phantom --set dataset.patients=6 --set dataset.size=32 --set dataset.slices=6 --set dataset.institutions=2)
common=("${data[@]}" --folds 3 --batch-size 4 --quiet)
small=("${common[@]}" --set model.base=4 --set model.depth=2 --lr 0.01 --epochs 2)
bench run "${small[@]}" --name first
bench run "${small[@]}" --name first --seed 1
bench run "${small[@]}" --name tversky --loss focal_tversky
bench run "${small[@]}" --name leaky --set split=leaky_slices
bench run "${common[@]}" --epochs 1 --model classifier --encoder mobilenetv3_small_050 --name classifier
bench data phantom others --set patients=10 --set size=32 --set slices=6 --set institutions=2 --set seed=7
rm -rf others/*_000[1-6]* others/data.csv
bench rescore tversky --threshold 0.3 --largest --name cleaned
bench ensemble first tversky --name both
BENCH_CACHE=$work/others-cache bench evaluate tversky --data others
rm -rf others-cache
bench export tversky --out exported
bench search "${data[@]}" --set split.folds=3 --set train.batch_size=4 --set model.base=4 --set model.depth=2 --set train.epochs=2 \
  --name study --space 'train.lr=[0.01,0.003]' --trials 2 --inner 2 --quiet
bench publish published
bench leaderboard --format csv > leaderboard.csv
COLUMNS=200 bench compare first tversky > compare.txt

# A run that is killed after its first checkpoint.
python -m bench run "${small[@]}" --epochs 4000 --name interrupted &
pid=$!
until find mlruns/unfinished -name 'epoch-*.state' | grep -q .; do sleep 0.5; done
kill -9 "$pid"; wait "$pid" || true

# What no test reads is left out: pictures, checkpoints, curves of the killed run, weights that are not exported.
# Paths become STORE_FOLDER.
find mlruns -name '*.png' -delete
find mlruns/unfinished -name '*.state' -delete
find . -name '*.lock' -delete
python - "$work" "$here/store.tar.xz" <<'PY'
import sqlite3, sys, tarfile
from pathlib import Path

folder, target = Path(sys.argv[1]), Path(sys.argv[2])
exported = {file.read_bytes() for file in (folder / "exported").rglob("*.safetensors")}
for file in (folder / "mlruns").rglob("*.safetensors"):
    if file.read_bytes() not in exported:
        file.unlink()
database = sqlite3.connect(folder / "mlruns" / "mlflow.db")
for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location"), ("logged_models", "artifact_location")):
    database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, 'STORE_FOLDER')", (str(folder),))
database.execute("DELETE FROM metrics WHERE run_uuid IN (SELECT run_uuid FROM runs WHERE status != 'FINISHED')")
database.commit()
database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
database.execute("VACUUM")
database.close()
with tarfile.open(target, "w:xz", preset=9) as archive:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix not in (".db-wal", ".db-shm"):
            archive.add(file, file.relative_to(folder))
PY
ls -l "$here/store.tar.xz"
