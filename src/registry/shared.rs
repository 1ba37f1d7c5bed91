// SPDX-License-Identifier: MPL-2.0
//! One book for all scribe processes of a user on one device: a small file in the runtime folder, locked while it is
//! read and written, so that processes that start at once cannot overrun a card together. A line for each process;
//! those of the dead are dropped by whoever reads next.
//!
//! A process may be killed between any two system calls. So the book is written in one, over what was there, and ends
//! with a mark: what an older, longer book has left behind it is not read.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::inference::DeviceId;

/// The lock is held for microseconds. A process that was stopped while it held it must not stop the others.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// After so long in vain the process that holds the lock is taken for stopped.
const STOPPED_AFTER: Duration = Duration::from_secs(10);
/// More lines than processes that could share a device: the rest of a damaged file is not read.
const LINES_MAX: usize = 4096;
const BYTES_MAX: u64 = 1 << 20;
/// Stands behind the last line.
const END: &str = ".";

/// A process's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub pid: u32,
    /// When the process started, in ticks since boot: a number that was given out again is another process.
    pub started: u64,
    /// Which registry of the process.
    pub registry: u32,
    pub figures: Figures,
}

/// What a process tells the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// Bytes that it has reserved, and those that were freed and are on their way back.
    pub reserved: u64,
    /// Bytes that it waits for.
    pub wanted: u64,
    /// Grows while it loads or computes.
    pub beats: u64,
}

/// Why a book cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// Somebody has it: another try may succeed.
    ForNow,
    /// It cannot be opened, or its lock is held by somebody who does nothing: everybody is on his own.
    ForGood,
}

/// See the module.
#[derive(Debug)]
pub(super) struct SharedBook {
    path: PathBuf,
    own: Line,
    /// Since when its lock was not to be had.
    shut_out: Cell<Option<Instant>>,
}

/// The book, locked. What is written must be written before it is dropped.
#[derive(Debug)]
pub(super) struct OpenBook<'a> {
    book: &'a SharedBook,
    file: File,
    /// Lines of the living, not ours.
    pub others: Vec<Line>,
}

impl SharedBook {
    /// The book of `device` in the runtime folder. `None` where no folder is there that is ours alone.
    pub(super) fn of(device: DeviceId) -> Option<Self> {
        let folder = runtime_folder()?;
        Some(Self::at(
            folder.join(format!("ledger-{device}").replace(':', "-")),
        ))
    }

    pub(super) fn at(path: PathBuf) -> Self {
        static REGISTRIES: AtomicU32 = AtomicU32::new(1);
        let pid = std::process::id();
        Self {
            path,
            own: Line {
                pid,
                started: start_of(pid).unwrap_or(0),
                registry: REGISTRIES.fetch_add(1, Ordering::Relaxed),
                figures: Figures::default(),
            },
            shut_out: Cell::new(None),
        }
    }

    /// Locks and reads.
    pub(super) fn open(&self) -> Result<OpenBook<'_>, Closed> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .map_err(|_| Closed::ForGood)?;
        let began = Instant::now();
        let shut_out = self.shut_out.get();
        // Nobody waits long again for somebody who did nothing before.
        let stopped = shut_out.is_some_and(|since| since.elapsed() >= STOPPED_AFTER);
        let patience = if stopped {
            Duration::ZERO
        } else {
            LOCK_PATIENCE
        };
        while file.try_lock().is_err() {
            if began.elapsed() >= patience {
                self.shut_out.set(shut_out.or(Some(began)));
                return Err(if stopped {
                    Closed::ForGood
                } else {
                    Closed::ForNow
                });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.shut_out.set(None);
        let mut bytes = Vec::new();
        (&mut file)
            .take(BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|_| Closed::ForGood)?;
        let others = String::from_utf8_lossy(&bytes)
            .lines()
            .take_while(|line| *line != END)
            .take(LINES_MAX)
            .filter_map(Line::parse)
            .filter(|line| !line.same_owner(&self.own) && line.lives())
            .collect();
        Ok(OpenBook {
            book: self,
            file,
            others,
        })
    }
}

impl OpenBook<'_> {
    /// Writes the book with `figures` for us. A failure leaves others without them, which the device's own figures then
    /// show.
    pub(super) fn write(self, figures: Figures) {
        let own = Line {
            figures,
            ..self.book.own.clone()
        };
        let has_own = figures.reserved > 0 || figures.wanted > 0;
        let mut text = String::new();
        for line in self.others.iter().chain(has_own.then_some(&own)) {
            text.push_str(&line.text());
        }
        text.push_str(END);
        text.push('\n');
        let _ = self
            .file
            .write_all_at(text.as_bytes(), 0)
            .and_then(|()| self.file.set_len(text.len() as u64));
    }
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(' ');
        let mut number = || fields.next()?.parse::<u64>().ok();
        let line = Self {
            pid: number()?.try_into().ok()?,
            started: number()?,
            registry: number()?.try_into().ok()?,
            figures: Figures {
                reserved: number()?,
                wanted: number()?,
                beats: number()?,
            },
        };
        fields.next().is_none().then_some(line)
    }

    fn text(&self) -> String {
        let Figures {
            reserved,
            wanted,
            beats,
        } = self.figures;
        let (pid, started, registry) = (self.pid, self.started, self.registry);
        format!("{pid} {started} {registry} {reserved} {wanted} {beats}\n")
    }

    fn same_owner(&self, other: &Self) -> bool {
        (self.pid, self.started, self.registry) == (other.pid, other.started, other.registry)
    }

    fn lives(&self) -> bool {
        start_of(self.pid) == Some(self.started)
    }
}

/// When a process started, in ticks since boot. `None` if there is none, or only what is left of it.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    let rest = stat.get(stat.rfind(')')? + 2..)?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// `SCRIBE_RUNTIME_DIR`, `$XDG_RUNTIME_DIR/scribe`, or a folder of ours among the temporary files.
fn runtime_folder() -> Option<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).filter(|v| !v.is_empty());
    if let Some(folder) = named("SCRIBE_RUNTIME_DIR") {
        return private_folder(PathBuf::from(folder));
    }
    let own = std::fs::metadata("/proc/self").ok()?.uid();
    named("XDG_RUNTIME_DIR")
        .and_then(|d| private_folder(Path::new(&d).join("scribe")))
        .or_else(|| private_folder(std::env::temp_dir().join(format!("scribe-{own}"))))
}

/// Makes the folder if need be. What belongs to somebody else, or is a link, is not used.
fn private_folder(path: PathBuf) -> Option<PathBuf> {
    let _ = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path);
    let found = std::fs::symlink_metadata(&path).ok()?;
    let own = std::fs::metadata("/proc/self").ok()?.uid();
    (found.is_dir() && found.uid() == own).then_some(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn book(folder: &Path) -> SharedBook {
        SharedBook::at(folder.join("ledger"))
    }

    fn reserved(bytes: u64) -> Figures {
        Figures {
            reserved: bytes,
            ..Figures::default()
        }
    }

    #[test]
    fn what_one_tells_another_sees_until_there_is_nothing_to_tell() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (book(folder.path()), book(folder.path()));
        let figures = Figures {
            reserved: 1000,
            wanted: 7,
            beats: 3,
        };

        a.open().unwrap().write(figures);
        let seen = b.open().unwrap().others.clone();
        a.open().unwrap().write(reserved(0));

        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].figures, figures);
        assert!(b.open().unwrap().others.is_empty());
    }

    #[test]
    fn lines_of_the_dead_and_of_nobody_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let started = start_of(child.id()).unwrap();
        let alive = format!("{} {started} 1 77 0 0\n", child.id());
        let reused = format!("{} {} 1 5 0 0\n", child.id(), started + 1);
        let text = format!("{alive}{reused}4000000000 1 1 5 0 0\nrubbish\n1 2\n-1 0 0 0 0 0\n");
        std::fs::write(folder.path().join("ledger"), text).unwrap();
        let own = book(folder.path());

        let before = own.open().unwrap().others.clone();
        child.kill().unwrap();
        child.wait().unwrap();
        let after = own.open().unwrap().others.clone();

        let bytes: Vec<u64> = before.iter().map(|l| l.figures.reserved).collect();
        assert_eq!(bytes, [77]);
        assert!(after.is_empty(), "{after:?}");
    }

    #[test]
    fn what_a_killed_process_has_left_behind_the_end_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (book(folder.path()), book(folder.path()));
        let path = folder.path().join("ledger");
        a.open().unwrap().write(reserved(12_345_678));
        let long = std::fs::read_to_string(&path).unwrap();
        a.open().unwrap().write(reserved(9));
        let short = std::fs::read_to_string(&path).unwrap();
        // Killed before it could cut the file.
        std::fs::write(&path, format!("{short}{long}")).unwrap();

        let seen = b.open().unwrap().others.clone();

        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].figures.reserved, 9);
    }

    #[test]
    fn a_book_that_somebody_has_open_is_closed_for_now() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (book(folder.path()), book(folder.path()));

        let open = a.open().unwrap();
        assert_eq!(b.open().unwrap_err(), Closed::ForNow);
        b.shut_out.set(Some(Instant::now() - STOPPED_AFTER));
        assert_eq!(b.open().unwrap_err(), Closed::ForGood);
        drop(open);

        assert!(b.open().is_ok());
        assert_eq!(b.shut_out.get(), None);
    }

    #[test]
    fn a_folder_that_is_a_link_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("real")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("real"), folder.path().join("link")).unwrap();

        assert!(private_folder(folder.path().join("link")).is_none());
        assert!(private_folder(folder.path().join("new/inner")).is_some());
    }
}
