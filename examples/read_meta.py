#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""Words with their times, out of the metas on text buffers: read_meta.py FILE [PROPERTY=VALUE ...]

Debian: apt install python3-gst-1.0. The plugin is found by GST_PLUGIN_PATH.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402


def show(_sink, buffer, _pad):
    meta = buffer.get_custom_meta("ScribeTranscriptMeta")
    if meta is None:
        return
    # A structure inside a meta lives as long as the buffer: copy what is kept.
    cue = meta.get_structure()
    for word in cue.get_value("words"):
        start = word.get_uint64("start")[1] / 1e9
        end = word.get_uint64("end")[1] / 1e9
        confidence = word.get_double("confidence")[1]
        print(f"{start:.3f}\t{end:.3f}\t{confidence:.2f}\t{word.get_string('text').strip()}", flush=True)


def main():
    Gst.init(None)
    if len(sys.argv) < 2:
        sys.exit(__doc__.splitlines()[0])
    pipeline = Gst.parse_launch(
        "filesrc name=source ! decodebin ! scribetranscriber name=scribe ! "
        "fakesink name=sink sync=false signal-handoffs=true"
    )
    pipeline.get_by_name("source").set_property("location", sys.argv[1])
    for setting in sys.argv[2:]:
        name, _, value = setting.partition("=")
        Gst.util_set_object_arg(pipeline.get_by_name("scribe"), name, value)
    pipeline.get_by_name("sink").connect("handoff", show)

    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(
        Gst.CLOCK_TIME_NONE, Gst.MessageType.ERROR | Gst.MessageType.EOS
    )
    pipeline.set_state(Gst.State.NULL)
    if message.type == Gst.MessageType.ERROR:
        error: GLib.Error = message.parse_error()[0]
        sys.exit(error.message)


if __name__ == "__main__":
    main()
