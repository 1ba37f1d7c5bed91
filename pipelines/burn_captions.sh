#!/bin/sh
# SPDX-License-Identifier: MPL-2.0
# Video file to MP4 with its words in the pictures, a colour for each speaker.
#   pipelines/burn_captions.sh film.mkv [film.captioned.mp4]
#
# The file is read twice, once for its words and once for its pictures and sound. Who spoke is known at the end of a file,
# and so are the captions: until then the second reader stands at its first picture, and no queue holds more than a
# second. With one reader all pictures of the film would have to wait in memory. The sound has a longer queue, because
# x264enc holds back some two seconds of pictures: 10 MB, as compressed sound. Ten minutes of 1280x720 took 816 MiB at their
# peak, one minute 758 MiB, the words alone 468 MiB (docs/memory.md).
set -eu
in=${1:?usage: $0 FILE [OUTPUT]}
out=${2:-${in%.*}.captioned.mp4}
# shellcheck source=pipelines/common.sh
. "$(dirname "$0")/common.sh"
need textoverlay "apt-get install gstreamer1.0-x"
need x264enc "apt-get install gstreamer1.0-plugins-ugly"
need avenc_aac "apt-get install gstreamer1.0-libav"
need scribebin "make build, or GST_PLUGIN_PATH=… to where libgstscribe.so is"

gst-launch-1.0 -q -e mp4mux name=m ! filesink location="$out" filesrc location="$in" ! decodebin name=d \
    d. ! queue ! videoconvert ! video/x-raw,format=I420 ! textoverlay name=o shaded-background=true font-desc="Sans 18" ! x264enc ! h264parse ! queue ! m. \
    d. ! queue ! audioconvert ! audioresample ! avenc_aac ! aacparse ! queue max-size-time=0 max-size-buffers=0 ! m. \
    filesrc location="$in" ! decodebin ! scribebin ! text/x-raw,format=pango-markup ! queue ! o.text_sink
