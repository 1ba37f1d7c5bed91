#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
#
# Copies what was built to where GStreamer and people find it. Nothing of it needs the clone any more.
#
#   PREFIX=/usr/local FOR_USER= DESTDIR= BUILD=target/release MODELS=1 scripts/install.sh
#
# DESTDIR is for packagers: files go below it, and the lists name them without it. Two lists in
# share/scribe say what was put there; scripts/uninstall.sh goes by them.
set -eu

cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
# shellcheck source=scripts/install_paths.sh
. scripts/install_paths.sh

: "${DESTDIR:=}" "${BUILD:=target/release}" "${MODELS:=1}"
# Not built here: under sudo that would leave root's files in target/, and Rust is often another user's.
for built in libgstscribe.so scribe-worker; do
    [ -f "$BUILD/$built" ] || die "there is no $BUILD/$built to install" "make build && make models, then make install"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$work/files"
: >"$work/models"

# Copies to a name of its own first and renames: a running pipeline keeps the file it has mapped.
put() { # MODE FROM TO LIST
    if ! { mkdir -p "$DESTDIR$(dirname "$3")" && cp "$2" "$DESTDIR$3.new" &&
        chmod "$1" "$DESTDIR$3.new" && mv -f "$DESTDIR$3.new" "$DESTDIR$3"; }; then
        die "cannot write $DESTDIR$3" "install into folders of your own with USER=1, or as root: sudo make install PREFIX=${PREFIX:-/usr/local}"
    fi
    echo "$3" >>"$work/$4"
}

put 755 "$BUILD/libgstscribe.so" "$plugin_dir/libgstscribe.so" files

# The link of ONNX Runtime's soname is made anew.
put_libraries() { # FROM TO
    runtime=
    for library in "$1"/lib*.so*; do
        if [ -f "$library" ] && [ ! -L "$library" ]; then
            put 755 "$library" "$2/${library##*/}" files
            case $library in
                */libonnxruntime.so.*) runtime=${library##*/} ;;
            esac
        fi
    done
    if [ -n "$runtime" ]; then
        ln -sfn "$runtime" "$DESTDIR$2/libonnxruntime.so.1"
        echo "$2/libonnxruntime.so.1" >>"$work/files"
    fi
}

put_libraries "$BUILD/scribe" "$plugin_dir/scribe"
[ -n "$runtime" ] || say "no ONNX Runtime in $BUILD/scribe: not installed ('make models' puts it there)"
# For NVIDIA cards, where 'make build GPU=cuda' has put it there.
put_libraries "$BUILD/../scribe/cuda" "$cards_dir"

# Beside the plugin, which starts it: nobody else has a use for it.
put 755 "$BUILD/scribe-worker" "$plugin_dir/scribe/scribe-worker" files

for program in scribe-models scribe-voices scribe-doctor; do
    if [ -x "$BUILD/$program" ]; then
        put 755 "$BUILD/$program" "$bin_dir/$program" files
    fi
done
# The page and the completions are made by the program, which may be one for another machine.
made_by_voices() { # TO ARGUMENTS…
    to=$1
    shift
    if [ -x "$BUILD/scribe-voices" ] && "$BUILD/scribe-voices" "$@" >"$work/made" 2>/dev/null; then
        put 644 "$work/made" "$to" files
    fi
}
made_by_voices "$data_dir/man/man1/scribe-voices.1" man
made_by_voices "$data_dir/bash-completion/completions/scribe-voices" completions bash
made_by_voices "$data_dir/zsh/site-functions/_scribe-voices" completions zsh
made_by_voices "$data_dir/fish/vendor_completions.d/scribe-voices.fish" completions fish
for text in LICENSE NOTICE README.md; do
    if [ -f "$text" ]; then
        put 644 "$text" "$share_dir/$text" files
    fi
done

count=0
if [ "$MODELS" = 1 ]; then
    # What .gitignore calls a model, less what a broken fetch left.
    find models -type f \( -name '*.bin' -o -name '*.onnx' -o -path 'models/whisper-*/*' -o -name '*.toml' \) \
        ! -name '*.part*' ! -path 'models/download/*' 2>/dev/null | LC_ALL=C sort >"$work/found" || true
    while IFS= read -r model; do
        put 644 "$model" "$share_dir/$model" models
        count=$((count + 1))
    done <"$work/found"
fi

# What an older version had and this one has not.
drop_stale() { # LIST
    list=$DESTDIR$share_dir/installed-$1.txt
    [ -f "$list" ] || return 0
    while IFS= read -r path; do
        if [ "$path" != "$share_dir/installed-$1.txt" ] && ! grep -qxF "$path" "$work/$1"; then
            rm -f "$DESTDIR$path"
        fi
    done <"$list"
}
drop_stale files
mkdir -p "$DESTDIR$share_dir"
echo "$share_dir/installed-files.txt" >>"$work/files"
cp "$work/files" "$DESTDIR$share_dir/installed-files.txt"
if [ -s "$work/models" ]; then
    # Models of an earlier installation are kept: they cost a download. So its list is kept too.
    cat "$DESTDIR$share_dir/installed-models.txt" 2>/dev/null >>"$work/models" || true
    LC_ALL=C sort -u "$work/models" >"$DESTDIR$share_dir/installed-models.txt"
fi

say "installed $(wc -l <"$work/files") files and $count model files; the lists are in $DESTDIR$share_dir"
if [ -z "$DESTDIR" ] && ! GST_PLUGIN_PATH='' gst-inspect-1.0 --exists scribetranscriber 2>/dev/null; then
    say "GStreamer does not look into $plugin_dir by itself: export GST_PLUGIN_PATH=$plugin_dir"
fi
