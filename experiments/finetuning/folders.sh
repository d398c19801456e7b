#!/usr/bin/env bash
# The two data sets of this experiment, from an image folder with CIFAR-10's classes: bash folders.sh CIFAR10_FOLDER
# first_five has five classes, all images; other_five the other five, 100 training images of each.
set -euo pipefail
source=$(cd "$1" && pwd)
link() { # FOLDER CLASS TRAINING_IMAGES
  mkdir -p "$1/train/$2" "$1/test"
  find "$source/train/$2" -type f | sort | sed -n "1,$3p" | xargs -I{} ln -sf {} "$1/train/$2/"
  ln -sfn "$source/test/$2" "$1/test/$2"
}
for class in airplane automobile bird cat deer; do link first_five "$class" 5000; done
for class in dog frog horse ship truck; do link other_five "$class" 100; done
