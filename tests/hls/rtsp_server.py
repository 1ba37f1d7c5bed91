#!/usr/bin/python3
# SPDX-License-Identifier: MPL-2.0
"""Serves a Matroska file (H.264 and Opus) over RTSP on loopback, as fast as it was spoken, to whoever asks first.

    rtsp_server.py FILE

Prints its address once it listens. GStreamer's own server (gir1.2-gst-rtsp-server-1.0).
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

Gst.init(None)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f'( filesrc location="{sys.argv[1]}" ! matroskademux name=d '
    "d. ! queue ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1 "
    "d. ! queue ! opusparse ! rtpopuspay name=pay1 pt=97 )"
)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
# Any port that is free.
server.set_service("0")
server.get_mount_points().add_factory("/talk", factory)
if server.attach(None) == 0:
    sys.exit("no port to listen on")
print(f"rtsp://127.0.0.1:{server.get_bound_port()}/talk", flush=True)
GLib.MainLoop().run()
