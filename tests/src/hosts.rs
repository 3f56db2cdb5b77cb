//! Hosts of their own for sheep: network namespaces, with a router between them that can cut any way.
//!
//! The router is a namespace too, and the thread that makes hosts moves there with all that it starts from then on: so tests
//! reach every host whatever is cut, while what one host sends another passes the router, which drops it where told
//! (nftables). Nothing of this is visible outside, and it ends with the processes that hold the namespaces.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::tool;
use crate::wait;

const LIMIT: Duration = Duration::from_secs(10);
/// A namespace is held for so many seconds at most, should nobody end it.
const LIFE: &str = "3600";

/// Where a sheep runs.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its address.
    pub ip: Ipv4Addr,
    /// A process in its network namespace, if that is another than the tests'.
    pub namespace: Option<u32>,
}

impl Place {
    /// This machine.
    pub const LOOPBACK: Self = Self { ip: Ipv4Addr::LOCALHOST, namespace: None };

    /// A command that runs `program` there.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let Some(pid) = self.namespace else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{pid}/ns/net")).arg(program);
        command
    }
}

/// A process that keeps a namespace, until dropped.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--net", "sleep", LIFE])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare is part of util-linux");
        let holder = Self(child);
        let ours = fs::read_link("/proc/thread-self/ns/net").expect("this thread has one");
        wait::until(LIMIT, "a namespace of its own", || match fs::read_link(holder.path()) {
            Ok(its) if its != ours => Ok(()),
            other => Err(format!("{other:?}")),
        });
        holder
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn enter(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("network namespaces need root");
}

/// Hosts by number from 0, and the router. The thread that made them has to be the one that drops them.
#[derive(Debug)]
pub struct Hosts {
    holders: Vec<Holder>,
    _router: Holder,
    home: File,
}

impl Hosts {
    /// Connects `count` hosts, and moves this thread to the router.
    #[track_caller]
    pub fn new(count: usize) -> Self {
        let home = File::open("/proc/thread-self/ns/net").expect("this thread has one");
        let router = Holder::new();
        enter(&File::open(router.path()).expect("held"));
        let hosts = Self { holders: (0..count).map(|_| Holder::new()).collect(), _router: router, home };
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a setting of this namespace");
        run(&["ip", "link", "set", "lo", "up"]);
        run(&[
            "nft",
            "add table inet cuts; add chain inet cuts forward { type filter hook forward priority 0; }",
        ]);
        for index in 0..count {
            let (link, near, far) = (format!("host{index}"), gateway(index), address(index));
            let pid = hosts.holders[index].0.id().to_string();
            let inside = |args: &[&str]| run(&[&["nsenter", "-t", &pid, "-n", "ip"], args].concat());
            run(&["ip", "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
            run(&["ip", "addr", "add", &format!("{near}/24"), "dev", &link]);
            run(&["ip", "link", "set", &link, "up"]);
            inside(&["link", "set", "lo", "up"]);
            inside(&["addr", "add", &format!("{far}/24"), "dev", "eth0"]);
            inside(&["link", "set", "eth0", "up"]);
            inside(&["route", "add", "default", "via", &near.to_string()]);
        }
        hosts
    }

    /// A host.
    pub fn place(&self, index: usize) -> Place {
        Place { ip: address(index), namespace: Some(self.holders[index].0.id()) }
    }

    /// From now on nothing that `from` sends reaches `to`.
    #[track_caller]
    pub fn cut(&self, from: usize, to: usize) {
        let (from, to) = (address(from), address(to));
        run(&["nft", &format!("add rule inet cuts forward ip saddr {from} ip daddr {to} drop")]);
    }

    /// Nothing goes between these hosts and the others, either way.
    #[track_caller]
    pub fn isolate(&self, hosts: &[usize]) {
        self.mute(hosts);
        self.deafen(hosts);
    }

    /// The others hear nothing from these hosts.
    #[track_caller]
    pub fn mute(&self, hosts: &[usize]) {
        self.between(hosts).for_each(|(inside, outside)| self.cut(inside, outside));
    }

    /// These hosts hear nothing from the others.
    #[track_caller]
    pub fn deafen(&self, hosts: &[usize]) {
        self.between(hosts).for_each(|(inside, outside)| self.cut(outside, inside));
    }

    fn between<'a>(&'a self, hosts: &'a [usize]) -> impl Iterator<Item = (usize, usize)> + 'a {
        let outside = (0..self.holders.len()).filter(|index| !hosts.contains(index));
        outside.flat_map(|out| hosts.iter().map(move |inside| (*inside, out)))
    }

    /// Everything goes everywhere again.
    #[track_caller]
    pub fn mend(&self) {
        run(&["nft", "flush chain inet cuts forward"]);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        enter(&self.home);
    }
}

fn gateway(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, index as u8, 1)
}

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, index as u8, 2)
}

#[track_caller]
fn run(words: &[&str]) {
    tool::run(LIMIT, words[0], &words[1..]).ok();
}
