//! The peers' lanes.

use std::hint::black_box;

use crate::lane::{Lane, Mapped, Subject};
use crate::order::Order;
use crate::peers::aarch64::Aarch64;
use crate::peers::multiarch::Multiarch;
use crate::peers::x86_64::X86;
use crate::peers::{Peer, all};
use crate::results::Who;

/// What a row asks of a peer, page by page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Map,
    Unmap,
    Pair,
    Translate,
}

/// A peer, and whether its window is filled.
struct Stand<P> {
    peer: P,
    filled: bool,
}

impl<P: Peer> Stand<P> {
    fn new() -> Self {
        Self {
            peer: P::new(),
            filled: false,
        }
    }

    /// Makes the window empty or full by single pages, with the tables in place and in the caches.
    fn bring(&mut self, pages: u64, filled: bool) {
        if self.filled == filled {
            self.turn(pages);
        }
        self.turn(pages);
    }

    fn turn(&mut self, pages: u64) {
        if self.filled {
            self.peer.unmap(&all(pages));
        } else {
            self.peer.map(&all(pages));
        }
        self.filled = !self.filled;
    }
}

impl<P: Peer> Subject for Stand<P> {
    fn mapped(&self) -> Vec<Mapped> {
        self.peer.mapped()
    }
}

fn single<P: Peer + 'static, O: Order>(pages: u64, order: O, act: Act) -> Lane {
    let ready = order.clone();
    Lane::new(
        Who::Peer(P::NAME),
        order.count(),
        Stand::<P>::new(),
        move |stand| {
            if act == Act::Translate {
                if !stand.filled {
                    stand.turn(pages);
                }
                black_box(stand.peer.translate(&ready));
            } else {
                stand.bring(pages, act == Act::Unmap);
            }
        },
        move |stand| match act {
            Act::Map => {
                stand.peer.map(&order);
                stand.filled = true;
            }
            Act::Unmap => {
                stand.peer.unmap(&order);
                stand.filled = false;
            }
            Act::Pair => stand.peer.pair(&order),
            Act::Translate => {
                black_box(stand.peer.translate(&order));
            }
        },
    )
}

/// All peers, page by page.
pub(super) fn singles<O: Order>(pages: u64, order: &O, act: Act) -> Vec<Lane> {
    vec![
        single::<X86, O>(pages, order.clone(), act),
        single::<Aarch64, O>(pages, order.clone(), act),
        single::<Multiarch, O>(pages, order.clone(), act),
    ]
}

/// Ranges of a peer's window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges {
    /// Pages of the window.
    pub(super) pages: u64,
    /// Pages of each range.
    pub(super) step: u64,
    /// Pages of each leaf.
    pub(super) leaf: u64,
}

impl Ranges {
    fn map<P: Peer>(self, stand: &mut Stand<P>) {
        if self.leaf == 1 {
            stand.peer.map_ranges(self.pages, self.step);
        } else {
            stand.peer.map_large(self.pages, self.leaf);
        }
        stand.filled = true;
    }

    fn unmap<P: Peer>(self, stand: &mut Stand<P>) {
        if self.leaf == 1 {
            stand.peer.unmap_ranges(self.pages, self.step);
        } else {
            stand.peer.unmap_large(self.pages, self.leaf);
        }
        stand.filled = false;
    }

    /// Makes the window empty or full, with the tables in the caches.
    fn bring<P: Peer>(self, stand: &mut Stand<P>, filled: bool) {
        if self.leaf == 1 {
            stand.bring(self.pages, filled);
            return;
        }
        if stand.filled == filled {
            self.turn(stand);
        }
        self.turn(stand);
    }

    fn turn<P: Peer>(self, stand: &mut Stand<P>) {
        if stand.filled {
            self.unmap(stand);
        } else {
            self.map(stand);
        }
    }

    fn lane<P: Peer + 'static>(
        self,
        prepare: impl Fn(&mut Stand<P>) + 'static,
        run: impl Fn(Self, &mut Stand<P>) + 'static,
    ) -> Lane {
        Lane::new(
            Who::Peer(P::NAME),
            self.pages / self.leaf,
            Stand::<P>::new(),
            prepare,
            move |stand| run(self, stand),
        )
    }

    fn map_lane<P: Peer + 'static>(self, cold: bool) -> Lane {
        let prepare = move |stand: &mut Stand<P>| {
            if cold {
                *stand = Stand::new();
            } else {
                self.bring(stand, false);
            }
        };
        self.lane(prepare, Self::map::<P>)
    }

    fn unmap_lane<P: Peer + 'static>(self) -> Lane {
        self.lane(move |stand| self.bring(stand, true), Self::unmap::<P>)
    }
}

/// All peers, mapping ranges into an empty table, or into tables that are there.
pub(super) fn map_ranges(how: Ranges, cold: bool) -> Vec<Lane> {
    vec![
        how.map_lane::<X86>(cold),
        how.map_lane::<Aarch64>(cold),
        how.map_lane::<Multiarch>(cold),
    ]
}

/// All peers, unmapping ranges.
pub(super) fn unmap_ranges(how: Ranges) -> Vec<Lane> {
    vec![
        how.unmap_lane::<X86>(),
        how.unmap_lane::<Aarch64>(),
        how.unmap_lane::<Multiarch>(),
    ]
}
