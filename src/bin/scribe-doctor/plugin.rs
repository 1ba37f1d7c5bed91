// SPDX-License-Identifier: MPL-2.0
//! GStreamer, and whether it finds the plugin. The plugin is not loaded here: GStreamer's cache tells.

use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::set_plugin_file;
use gstscribe::inference::onnx::library::set_plugin_folder;

use crate::report::Report;

/// Elements that pipelines around scribe are made of, with Debian's package.
const ELEMENTS: [(&str, &str); 9] = [
    ("audioconvert", "gstreamer1.0-plugins-base"),
    ("opusdec", "gstreamer1.0-plugins-base"),
    ("vorbisdec", "gstreamer1.0-plugins-base"),
    ("flacdec", "gstreamer1.0-plugins-good"),
    ("wavparse", "gstreamer1.0-plugins-good"),
    ("matroskademux", "gstreamer1.0-plugins-good"),
    ("qtdemux", "gstreamer1.0-plugins-good"),
    ("avdec_aac", "gstreamer1.0-libav"),
    ("avdec_mp3", "gstreamer1.0-libav"),
];

/// Adds what is found.
pub fn look(report: &mut Report) {
    report.section("scribe and GStreamer");
    let commit = option_env!("COMMIT_ID").unwrap_or("no commit");
    report.ok(
        "scribe-doctor",
        format!("{}-{commit}", env!("CARGO_PKG_VERSION")),
    );
    if let Err(error) = gst::init() {
        report.missing(
            "GStreamer",
            format!("does not start: {error}"),
            "apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base",
        );
        return;
    }
    let (major, minor, micro, _) = gst::version();
    report.ok("GStreamer", format!("{major}.{minor}.{micro}"));
    let registry = gst::Registry::get();
    let own = registry.find_plugin("scribe");
    match &own {
        Some(plugin) => found(report, plugin),
        None => not_found(report, &registry),
    }
    worker(report, own.and_then(|plugin| plugin.filename()).as_deref());

    let there = |name: &str| gst::ElementFactory::find(name).is_some();
    if there("decodebin") {
        report.ok("decodebin", "opens recordings of any form");
    } else {
        report.missing(
            "decodebin",
            "not there: recordings cannot be opened",
            "apt-get install gstreamer1.0-plugins-base",
        );
    }
    let (mut names, mut packages): (Vec<&str>, Vec<&str>) = ELEMENTS
        .iter()
        .filter(|(name, _)| !there(name))
        .copied()
        .unzip();
    packages.dedup();
    names.sort_unstable();
    if names.is_empty() {
        report.ok("decoders", "the usual ones are here");
    } else {
        let remedy = format!("apt-get install {}", packages.join(" "));
        report.note(
            "decoders",
            format!("not here: {}", names.join(", ")),
            Some(&remedy),
        );
    }
}

fn found(report: &mut Report, plugin: &gst::Plugin) {
    let Some(file) = plugin.filename() else {
        report.note("plugin", "registered by a program, without a file", None);
        return;
    };
    // Models and libraries are looked for from here, as the plugin itself does.
    set_plugin_file(&file);
    if let Some(folder) = file.parent() {
        set_plugin_folder(folder);
    }
    report.ok(
        "plugin",
        format!("{} ({})", file.display(), plugin.version()),
    );
    let own = concat!(env!("CARGO_PKG_VERSION"), "-");
    if !plugin.version().starts_with(own) {
        report.note(
            "versions",
            format!(
                "the plugin is {}, this program {}",
                plugin.version(),
                env!("CARGO_PKG_VERSION")
            ),
            Some("take both from one build: make build, make install"),
        );
    }
}

fn not_found(report: &mut Report, registry: &gst::Registry) {
    let blacklisted = registry.plugins().into_iter().find(|plugin| {
        plugin
            .plugin_flags()
            .contains(gst::PluginFlags::BLACKLISTED)
            && plugin
                .filename()
                .is_some_and(|file| file.ends_with("libgstscribe.so"))
    });
    if let Some(file) = blacklisted.and_then(|plugin| plugin.filename()) {
        report.missing(
            "plugin",
            format!(
                "{} failed to load once, and GStreamer has not tried again",
                file.display()
            ),
            format!(
                "ldd {} | grep 'not found'; then rm ~/.cache/gstreamer-1.0/registry.*.bin",
                file.display()
            ),
        );
        return;
    }
    let beside = std::env::current_exe().ok().and_then(|program| {
        let folder = program.parent()?.to_owned();
        folder.join("libgstscribe.so").is_file().then_some(folder)
    });
    let remedy = match beside {
        Some(folder) => format!("export GST_PLUGIN_PATH={}", folder.display()),
        None => "make install USER=1, or export GST_PLUGIN_PATH=FOLDER of libgstscribe.so".into(),
    };
    let path = std::env::var("GST_PLUGIN_PATH").unwrap_or_default();
    report.missing(
        "plugin",
        format!("GStreamer does not find it (GST_PLUGIN_PATH is \"{path}\")"),
        remedy,
    );
}

/// The program that runs engines for `isolation=process`.
fn worker(report: &mut Report, plugin: Option<&Path>) {
    // WIRE: `inference::isolated` knows the places itself.
    let named = std::env::var_os("SCRIBE_WORKER").map(PathBuf::from);
    let beside = plugin
        .and_then(Path::parent)
        .into_iter()
        .flat_map(|folder| ["scribe/scribe-worker", "scribe-worker"].map(|name| folder.join(name)));
    match named.into_iter().chain(beside).find(|path| path.is_file()) {
        Some(path) => report.ok("scribe-worker", path.display().to_string()),
        None => report.note(
            "scribe-worker",
            "not here: isolation=process cannot be used",
            Some("make build, make install; or SCRIBE_WORKER=/path/scribe-worker"),
        ),
    }
}
