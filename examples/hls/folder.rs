// SPDX-License-Identifier: MPL-2.0
//! Finished segments into playlists, and the folder that players read from.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gst::prelude::*;

use super::options::Options;
use super::playlist::{Master, Playlist, Segment};
use super::stream::{CAPTIONS, PICTURES};

type Failure = Box<dyn std::error::Error>;

const MASTER: &str = "index.m3u8";
const VIDEO: &str = "video.m3u8";
const WORDS: &str = "captions.m3u8";

/// Segments out of a playlist stay for those who read an older one.
const KEPT_LONGER: usize = 3;

pub struct Folder {
    path: PathBuf,
    video: Playlist,
    words: Playlist,
    master: Master,
    /// Time of day at the running time zero, since 1970.
    zero: Option<Duration>,
    /// Where the first picture lies: captions before it have none to stand in.
    first_picture_ns: Option<u64>,
    /// Captions that came before the first picture.
    early: Vec<Segment>,
    /// The segment that is being written.
    open: Option<Segment>,
    /// Out of the playlists and not yet deleted.
    gone: Vec<Vec<String>>,
}

impl Folder {
    pub fn new(options: &Options) -> Result<Self, Failure> {
        let path = options.folder.clone();
        fs::create_dir_all(&path).map_err(|e| named(&path, e))?;
        let video = Playlist::new(options.segment, options.window);
        Ok(Self {
            path,
            words: video.beside(),
            video,
            master: Master {
                language: options.language.clone(),
                ..Master::default()
            },
            zero: None,
            first_picture_ns: None,
            early: Vec::new(),
            open: None,
            gone: vec![Vec::new(), Vec::new()],
        })
    }

    /// Follows what splitmuxsink and the captions' sink tell.
    pub fn take(
        &mut self,
        told: &gst::StructureRef,
        pipeline: &gst::Pipeline,
    ) -> Result<(), Failure> {
        match told.name().as_str() {
            "splitmuxsink-fragment-opened" => {
                let Some((file, start_ns)) = fragment(told) else {
                    return Ok(());
                };
                self.set_zero(pipeline);
                self.first_picture_ns.get_or_insert(start_ns);
                self.open = Some(Segment {
                    file,
                    start_ns,
                    end_ns: start_ns,
                });
                self.take_early()?;
            }
            "splitmuxsink-fragment-closed" => {
                let Some((file, end_ns)) = fragment(told) else {
                    return Ok(());
                };
                // The next one may be open already.
                if let Some(mut segment) = self.open.take_if(|open| open.file == file) {
                    segment.end_ns = end_ns;
                    self.picture(segment)?;
                }
            }
            PICTURES => {
                let profile = told.get::<&str>("profile").unwrap_or_default();
                let level = told.get::<&str>("level").unwrap_or_default();
                let codec = super::playlist::h264_codec(profile, level);
                self.master.codecs = codec.map(|video| format!("{video},mp4a.40.2"));
            }
            CAPTIONS => self.captions(told)?,
            _ => {}
        }
        Ok(())
    }

    /// Nothing more comes.
    pub fn end(&mut self) -> Result<(), Failure> {
        self.video.end();
        self.words.end();
        if !self.video.is_empty() {
            self.write(VIDEO, self.video.text(self.zero()).as_bytes())?;
            self.write(WORDS, self.words.text(self.zero()).as_bytes())?;
        }
        Ok(())
    }

    fn picture(&mut self, segment: Segment) -> Result<(), Failure> {
        let file = self.path.join(&segment.file);
        let bytes = fs::metadata(&file).map_err(|e| named(&file, e))?.len();
        let milliseconds = (segment.length_ns() / 1_000_000).max(1);
        let bits_per_second = bytes.saturating_mul(8000) / milliseconds;
        let gone = self.video.add(segment);
        self.delete(0, gone)?;
        self.forget_words()?;
        self.write(VIDEO, self.video.text(self.zero()).as_bytes())?;
        if bits_per_second > self.master.bits_per_second {
            // What it says is the most that a segment takes.
            self.master.bits_per_second = bits_per_second;
            self.write(MASTER, self.master.text(VIDEO, WORDS).as_bytes())?;
        }
        Ok(())
    }

    fn captions(&mut self, told: &gst::StructureRef) -> Result<(), Failure> {
        let index = told.get::<u64>("index")?;
        let start_ns = told.get::<u64>("start")?;
        let end_ns = told.get::<u64>("end")?;
        let text = told.get::<&str>("text")?;
        let file = format!("captions{index:05}.vtt");
        self.write(&file, text.as_bytes())?;
        self.early.push(Segment {
            file,
            start_ns,
            end_ns,
        });
        self.take_early()
    }

    fn take_early(&mut self) -> Result<(), Failure> {
        let Some(first_ns) = self.first_picture_ns else {
            return Ok(());
        };
        for segment in std::mem::take(&mut self.early) {
            if segment.end_ns <= first_ns {
                remove(&self.path.join(&segment.file))?;
                continue;
            }
            self.words.add(segment);
            self.forget_words()?;
            self.write(WORDS, self.words.text(self.zero()).as_bytes())?;
        }
        Ok(())
    }

    /// Captions whose pictures are no longer there.
    fn forget_words(&mut self) -> Result<(), Failure> {
        let Some(start_ns) = self.video.start_ns() else {
            return Ok(());
        };
        let gone = self.words.remove_before(start_ns);
        self.delete(1, gone)
    }

    fn delete(&mut self, of: usize, segments: Vec<Segment>) -> Result<(), Failure> {
        let Some(gone) = self.gone.get_mut(of) else {
            return Ok(());
        };
        gone.extend(segments.into_iter().map(|s| s.file));
        let too_old = gone.len().saturating_sub(KEPT_LONGER);
        for file in gone.drain(..too_old) {
            remove(&self.path.join(file))?;
        }
        Ok(())
    }

    fn set_zero(&mut self, pipeline: &gst::Pipeline) {
        if self.zero.is_none() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let running = pipeline.current_running_time().unwrap_or_default();
            let running = Duration::from(running);
            self.zero = now.ok().map(|now| now.saturating_sub(running));
        }
    }

    fn zero(&self) -> Duration {
        self.zero.unwrap_or_default()
    }

    /// Under another name first: who reads meanwhile gets the old or the new file, never half of one.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let (path, part) = (
            self.path.join(name),
            self.path.join(format!(".{name}.part")),
        );
        let write = || {
            fs::File::create(&part)?.write_all(bytes)?;
            fs::rename(&part, &path)
        };
        write().map_err(|e| named(&path, e).into())
    }
}

/// Name and running time of a fragment of splitmuxsink.
fn fragment(told: &gst::StructureRef) -> Option<(String, u64)> {
    let location = told.get::<&str>("location").ok()?;
    let file = Path::new(location).file_name()?.to_str()?.to_owned();
    let time = told.get::<gst::ClockTime>("running-time").ok()?;
    Some((file, time.nseconds()))
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(named(path, e).into()),
        _ => Ok(()),
    }
}

fn named(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
