// SPDX-License-Identifier: MPL-2.0
//! What is deleted leaves the file, its log, and the half-filled pages of both.

use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::error::{BUSY_S, Problem};
use super::rows::Rows;

/// Whether what was deleted has left the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Purge {
    /// No byte of it is left.
    Done,
    /// It is deleted, and bytes may be left until it is no longer so. The next to open the store for writing tries
    /// again.
    Pending(String),
}

/// What was deleted is to be purged.
pub(super) fn count_deletion(rows: &Rows<'_>) -> Result<(), Problem> {
    rows.conn
        .execute("UPDATE store SET deletions = deletions + 1", [])?;
    Ok(())
}

/// Overwrites what deletions have left, in the file and its log. SQLite's `secure_delete` zeroes what is deleted;
/// VACUUM writes what remains afresh, so that nothing hides in half-filled pages; the log is emptied at last.
pub(super) fn purge(conn: &Connection, patience: Duration) -> Purge {
    match try_purge(conn, patience) {
        Ok(true) => Purge::Done,
        Ok(false) => Purge::Pending("another process is reading the store".into()),
        Err(problem) => Purge::Pending(problem.to_string()),
    }
}

fn try_purge(conn: &Connection, patience: Duration) -> Result<bool, Problem> {
    let (deletions, purged): (i64, i64) =
        conn.query_row("SELECT deletions, purged FROM store", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    if purged >= deletions {
        return Ok(true);
    }
    conn.busy_timeout(patience)?;
    let emptied = conn.execute_batch("VACUUM").map_err(Problem::from);
    let emptied = emptied.and_then(|()| empty_log(conn, patience));
    conn.busy_timeout(Duration::from_secs(BUSY_S))?;
    if !emptied? {
        return Ok(false);
    }
    // Deletions that came meanwhile are not covered by it.
    conn.execute("UPDATE store SET purged = max(purged, ?1)", [deletions])?;
    // With nothing in it but this number: if that stays for a while, no harm is done.
    empty_log(conn, Duration::ZERO)?;
    Ok(true)
}

/// Whether nothing is left in the log. Waits for those who read from it.
fn empty_log(conn: &Connection, patience: Duration) -> Result<bool, Problem> {
    let begun = Instant::now();
    loop {
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: i64 = conn.query_row(sql, [], |row| row.get(0))?;
        if busy == 0 || begun.elapsed() >= patience {
            return Ok(busy == 0);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
