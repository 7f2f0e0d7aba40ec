#!/bin/sh
# FAISS' HNSW over rows that repeat: with exact copies its recall falls far below what the same graph parameters and the
# same ef give on distinct rows, and no ef brings it back.
#
# Versions: faiss-cpu 1.15.1, numpy 2.4.6, Python 3.11 or newer, Linux.
#
# IndexHNSWFlat(256, 16, METRIC_INNER_PRODUCT), efConstruction 40 (the default), 24,000 unit vectors. Queries are 300
# random unit vectors; recall@10 counts a found row as right if it is as near as the tenth nearest of an exact search, so
# any of several equal rows counts.
#
#   the same 600 different vectors, once:      recall 0.989 with ef 64, 1.000 with ef 256 and 1024
#   600 different vectors, 40 copies of each:  recall 0.091 with ef 64, 0.098 with ef 256, 0.120 with ef 1024
#
# The links of a row go to its copies, which are the nearest there are, so that a search that comes among copies does
# not leave them. A graph of the different vectors, to which the copies are added after the search, has no such problem.
#
# It makes its data itself, runs nothing of embedserve, and ends with 0 if this is still so, with 1 if it changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${PYTHON:-python3} -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import faiss
import numpy as np

DISTINCT, COPIES, DIMENSION, QUERIES, K = 600, 40, 256, 300, 10
faiss.omp_set_num_threads(1)
random = np.random.default_rng(0)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


distinct = unit(random.standard_normal((DISTINCT, DIMENSION)))
copied = np.repeat(distinct, COPIES, axis=0)[random.permutation(DISTINCT * COPIES)]
queries = unit(random.standard_normal((QUERIES, DIMENSION)))


def recalls(vectors):
    index = faiss.IndexHNSWFlat(DIMENSION, 16, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    lowest = np.partition(queries @ vectors.T, -K, axis=1)[:, -K, None]
    found = {}
    for ef in (64, 256, 1024):
        scores, _ = index.search(queries, K, params=faiss.SearchParametersHNSW(efSearch=ef))
        found[ef] = float((scores >= lowest - 1e-5).mean())
    return found


once, copies = recalls(distinct), recalls(copied)
print(f"faiss {faiss.__version__}, numpy {np.__version__}")
for ef in once:
    print(f"ef {ef:4}: recall@10 {once[ef]:.3f} with {DISTINCT} rows, {copies[ef]:.3f} with {COPIES} copies of each")
same = once[64] > 0.95 and copies[64] < 0.3 and copies[1024] < 0.5
print("as described" if same else "this has changed")
sys.exit(0 if same else 1)
PYTHON
