// SPDX-License-Identifier: MPL-2.0
//! Sockets that carry messages: a packet each, whole or not at all.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::protocol::{MAX_MESSAGE, Message, ProtocolError};

/// Most descriptors that come with a message: a lane's socket and its slot.
const MAX_DESCRIPTORS: usize = 2;

/// Why there is no next message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// Nobody is at the other end.
    Closed,
    /// What came is no message, or one that has no place here.
    Garbage(String),
    /// Another build is at the other end.
    Version(u16),
    /// The other side does not read what it is sent.
    Full,
    /// The system refuses.
    System(Errno),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("it closed its socket"),
            Self::Garbage(what) => f.write_str(what),
            Self::Version(found) => ProtocolError::Version { found: *found }.fmt(f),
            Self::Full => f.write_str("it does not read what it is sent"),
            Self::System(error) => write!(f, "its socket failed: {error}"),
        }
    }
}

impl From<ProtocolError> for Broken {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::Version { found } => Self::Version(found),
            other => Self::Garbage(other.to_string()),
        }
    }
}

impl From<Errno> for Broken {
    fn from(error: Errno) -> Self {
        match error {
            // After a kill either is seen.
            Errno::CONNRESET | Errno::PIPE => Self::Closed,
            Errno::AGAIN => Self::Full,
            other => Self::System(other),
        }
    }
}

/// One end of a pair. Sending takes no lock: packets do not mix.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: OwnedFd,
    /// Whether sending waits while the other side does not read.
    waits: bool,
}

/// Room for one packet, kept by whoever receives.
pub(super) struct Packet(Box<[u8]>);

impl Packet {
    pub(super) fn new() -> Self {
        Self(vec![0; MAX_MESSAGE].into_boxed_slice())
    }
}

impl Socket {
    /// Our end, which never waits when it sends, and the other side's.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let ours = Self {
            descriptor: ours,
            waits: false,
        };
        Ok((ours, theirs))
    }

    /// The worker's end: it may wait, for it has nothing else to do.
    pub(super) fn of_worker(descriptor: OwnedFd) -> Self {
        Self {
            descriptor,
            waits: true,
        }
    }

    /// Sends a message, with descriptors if any. A process that has no handler for SIGPIPE gets none.
    pub(super) fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Broken> {
        self.send_packet(&message.encode()?, descriptors, self.waits)
    }

    /// Sends it if there is room at once, and drops it if not.
    pub(super) fn offer(&self, message: &Message) {
        if let Ok(packet) = message.encode() {
            let _ = self.send_packet(&packet, &[], false);
        }
    }

    fn send_packet(
        &self,
        packet: &[u8],
        descriptors: &[BorrowedFd<'_>],
        waits: bool,
    ) -> Result<(), Broken> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Broken::System(Errno::INVAL));
        }
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::DONTWAIT, !waits);
        loop {
            match sendmsg(
                &self.descriptor,
                &[IoSlice::new(packet)],
                &mut control,
                flags,
            ) {
                Ok(sent) if sent == packet.len() => return Ok(()),
                Ok(_) => return Err(Broken::System(Errno::MSGSIZE)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next message; `None` if none comes within `wait`.
    pub(super) fn receive(
        &self,
        packet: &mut Packet,
        wait: Duration,
    ) -> Result<Option<Message>, Broken> {
        let timeout = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        let mut waited = [PollFd::new(&self.descriptor, PollFlags::IN)];
        match poll(&mut waited, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => Ok(None),
            Ok(_) => match self.take(packet, RecvFlags::DONTWAIT) {
                Ok((message, _)) => Ok(Some(message)),
                Err(Broken::Full) => Ok(None),
                Err(broken) => Err(broken),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the next message and what descriptors come with it.
    pub(super) fn wait(&self, packet: &mut Packet) -> Result<(Message, Vec<OwnedFd>), Broken> {
        self.take(packet, RecvFlags::empty())
    }

    fn take(
        &self,
        packet: &mut Packet,
        flags: RecvFlags,
    ) -> Result<(Message, Vec<OwnedFd>), Broken> {
        // Descriptors for which there is no room are closed by the kernel.
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let received = loop {
            let outcome = recvmsg(
                &self.descriptor,
                &mut [IoSliceMut::new(&mut packet.0)],
                &mut control,
                // The real length of what does not fit.
                flags | RecvFlags::CMSG_CLOEXEC | RecvFlags::TRUNC,
            );
            match outcome {
                Err(Errno::INTR) => {}
                outcome => break outcome?,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        match packet.0.get(..received.bytes) {
            // A packet of no bytes and the end look alike; neither is a message.
            Some([]) => Err(Broken::Closed),
            Some(bytes) => Ok((Message::decode(bytes)?, descriptors)),
            None => Err(ProtocolError::Length.into()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
