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

fn cold<P: Peer + 'static>(pages: u64, step: u64) -> Lane {
    Lane::new(
        Who::Peer(P::NAME),
        pages,
        Stand::<P>::new(),
        |stand| *stand = Stand::new(),
        move |stand| stand.peer.map_ranges(pages, step),
    )
}

/// All peers, mapping an empty table by ranges of `step` pages.
pub(super) fn cold_ranges(pages: u64, step: u64) -> Vec<Lane> {
    vec![
        cold::<X86>(pages, step),
        cold::<Aarch64>(pages, step),
        cold::<Multiarch>(pages, step),
    ]
}
