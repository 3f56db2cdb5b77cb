//! A raw NBD client: fixed newstyle, GO, simple replies. Blocking, able to pipeline.
//!
//! Our own, so that a test can leave requests in flight, break off anywhere and say what is wrong.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;

/// A request that takes longer hangs.
pub const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// Force unit access.
pub const FUA: u16 = 1;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Data comes back.
    Read = 0,
    /// Data goes along.
    Write = 1,
    /// Makes what was acknowledged durable.
    Flush = 3,
    /// Frees.
    Trim = 4,
    /// Zeros without sending them.
    WriteZeroes = 6,
}

/// An answer to a request.
#[derive(Debug)]
pub struct Reply {
    /// Of the request.
    pub cookie: u64,
    /// 0, or the errno.
    pub errno: u32,
    /// What was read.
    pub data: Vec<u8>,
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    size: u64,
    next_cookie: u64,
    /// How much data the reply to each request in flight brings.
    in_flight: HashMap<u64, u32>,
}

impl Client {
    /// Opens an export.
    pub fn connect(address: SocketAddr, export: &str) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        stream.set_write_timeout(Some(REPLY_LIMIT))?;
        let mut client = Self { stream, size: 0, next_cookie: 1, in_flight: HashMap::new() };
        client.handshake(export)?;
        Ok(client)
    }

    fn handshake(&mut self, export: &str) -> io::Result<()> {
        let greeting: [u8; 18] = self.take()?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" || greeting[17] & 1 == 0 {
            return Err(io::Error::other(format!("not a fixed newstyle server: {greeting:x?}")));
        }
        let mut hello = 3u32.to_be_bytes().to_vec(); // fixed newstyle, no zeroes
        hello.extend(b"IHAVEOPT");
        hello.extend(OPTION_GO.to_be_bytes());
        hello.extend((export.len() as u32 + 6).to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0u16.to_be_bytes());
        self.stream.write_all(&hello)?;
        loop {
            let magic = u64::from_be_bytes(self.take()?);
            let option = u32::from_be_bytes(self.take()?);
            let kind = u32::from_be_bytes(self.take()?);
            let len = u32::from_be_bytes(self.take()?);
            if magic != OPTION_REPLY_MAGIC || option != OPTION_GO || len > 1 << 16 {
                return Err(io::Error::other("not an answer to GO"));
            }
            let mut body = vec![0; len as usize];
            self.stream.read_exact(&mut body)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO if body.len() >= 10 && body[..2] == INFO_EXPORT.to_be_bytes() => {
                    let size: [u8; 8] = body[2..10].try_into().expect("eight bytes");
                    self.size = u64::from_be_bytes(size);
                }
                REPLY_INFO => {}
                _ => return Err(io::Error::other(String::from_utf8_lossy(&body).into_owned())),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The cookie of the request that is sent next.
    pub fn next_cookie(&self) -> u64 {
        self.next_cookie
    }

    /// Sends a request and does not wait; returns its cookie.
    pub fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend((command as u16).to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        self.in_flight.insert(cookie, if command == Command::Read { len } else { 0 });
        self.stream.write_all(&bytes)?;
        Ok(cookie)
    }

    /// Waits for the next answer, whichever it is.
    pub fn receive(&mut self) -> io::Result<Reply> {
        if u32::from_be_bytes(self.take()?) != REPLY_MAGIC {
            return Err(io::Error::other("not a reply"));
        }
        let errno = u32::from_be_bytes(self.take()?);
        let cookie = u64::from_be_bytes(self.take()?);
        let Some(len) = self.in_flight.remove(&cookie) else {
            return Err(io::Error::other(format!("a reply to {cookie:#x}, which is not in flight")));
        };
        let mut data = vec![0; if errno == 0 { len as usize } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(Reply { cookie, errno, data })
    }

    /// How many requests have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn call(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<Vec<u8>> {
        assert!(self.in_flight.is_empty(), "use send and receive");
        self.send(command, flags, offset, len, data)?;
        let reply = self.receive()?;
        match reply.errno {
            0 => Ok(reply.data),
            errno => Err(io::Error::from_raw_os_error(errno.cast_signed())),
        }
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        self.call(Command::Read, 0, offset, len, &[])
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(Command::Write, 0, offset, data.len() as u32, data).map(drop)
    }

    /// Makes everything acknowledged durable.
    pub fn flush(&mut self) -> io::Result<()> {
        self.call(Command::Flush, 0, 0, 0, &[]).map(drop)
    }

    /// Frees a range.
    pub fn trim(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.call(Command::Trim, 0, offset, len, &[]).map(drop)
    }

    /// Writes zeros.
    pub fn write_zeroes(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.call(Command::WriteZeroes, 0, offset, len, &[]).map(drop)
    }

    /// For a request that may hang.
    pub fn set_read_timeout(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).expect("not zero");
    }

    /// For a server that may stop reading.
    pub fn set_write_timeout(&self, limit: Duration) {
        self.stream.set_write_timeout(Some(limit)).expect("not zero");
    }

    /// Breaks off without a word.
    pub fn cut(&self) {
        // It may be gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
