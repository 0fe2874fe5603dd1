#!/bin/sh
# Puts the files of the image together: layout.sh cpu|cuda BINARY LIBTORCH MODEL OUT
#
#   OUT/opt/sightline/bin/sightline                     finds libtorch in ../lib
#   OUT/opt/sightline/lib                               cpu: the libraries that it needs
#                                                       cuda: a link to python/torch/lib, whose libraries find NVIDIA's beside it
#   OUT/opt/sightline/models/nsfwjs-mobilenet-v2        the default model
#   OUT/var/lib/sightline                               for data: the only place that the user 10001 may write to
set -eu
variant=${1:?cpu or cuda} binary=${2:?binary} libtorch=${3:?libtorch} model=${4:?model} out=${5:?folder}
top=$out/opt/sightline

install -D -m 755 "$binary" "$top/bin/sightline"
# Line tables are for developers: without them the binary is a third of the size.
strip --strip-debug "$top/bin/sightline"

mkdir -p "$top/models/nsfwjs-mobilenet-v2"
cp "$model"/model.toml "$model"/*.pt "$top/models/nsfwjs-mobilenet-v2/"

case $variant in
cpu)
    mkdir -p "$top/lib"
    for name in libc10. libtorch. libtorch_cpu. libgomp libcudart libcupti; do
        cp -P "$libtorch"/lib/$name*so* "$top/lib/"
    done
    ;;
cuda)
    # The same release of the same package, with the libraries of NVIDIA that it asks for.
    python3 -m pip install --quiet --no-cache-dir --only-binary=:all: --target "$top/python.all" torch==2.11.0
    mkdir -p "$top/python/torch"
    mv "$top/python.all/torch/lib" "$top/python/torch/lib"
    mv "$top/python.all/nvidia" "$top/python/nvidia"
    rm -rf "$top/python.all"
    ln -s python/torch/lib "$top/lib"
    ;;
*)
    echo "layout.sh: $variant is neither cpu nor cuda" >&2
    exit 2
    ;;
esac

chmod -R a+rX "$out"
install -d -m 750 -o 10001 -g 10001 "$out/var/lib/sightline"
