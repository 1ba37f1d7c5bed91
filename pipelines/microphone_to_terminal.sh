#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# Microphone to words on the terminal, each as soon as it stands: up to four seconds after it was said. Ctrl-C ends it.
#   pipelines/microphone_to_terminal.sh
#   SOURCE='alsasrc device=hw:1' pipelines/microphone_to_terminal.sh
#   SOURCE='filesrc location=talk.mp3 ! decodebin ! audioconvert ! identity sync=true' pipelines/microphone_to_terminal.sh
#
# Text that may still change is in messages and on the pad unsynced_src; `cargo run --release --features cli --example
# live_page -- --source pulsesrc` shows it, too, in a browser.
set -eu
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"
need scribetranscriber "make build, or GST_PLUGIN_PATH=… to where libgstscribe.so is"

# SOURCE is several words of a pipeline: split on purpose.
# shellcheck disable=SC2086
exec gst-launch-1.0 -q -e ${SOURCE:-autoaudiosrc} ! audioconvert ! queue max-size-time=10000000000 max-size-bytes=0 max-size-buffers=0 ! \
    scribetranscriber mode=live unit=word ! scribeenc format=text cues=keep ! fdsink fd=1
