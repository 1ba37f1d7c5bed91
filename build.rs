// SPDX-License-Identifier: MPL-2.0
//! Hands `gst::plugin_define!` the version and the date of this build.

fn main() {
    gst_plugin_version_helper::info();
}
