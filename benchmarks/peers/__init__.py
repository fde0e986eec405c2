"""The file systems that are compared, one module each; PEERS is the order of every table and plot."""

from benchmarks.peers.base import Peer
from benchmarks.peers.btrfs import Btrfs, BtrfsCompressed
from benchmarks.peers.ceiling import CeilingDevice, CeilingUring
from benchmarks.peers.cowfs import Cowfs, CowfsBack, CowfsCompressed, CowfsDevice, CowfsWithoutPump
from benchmarks.peers.ext4 import Ext4
from benchmarks.peers.xfs import Xfs
from benchmarks.peers.zfs import Zfs

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Cowfs,
        CowfsDevice,
        CowfsBack,
        CowfsCompressed,
        CowfsWithoutPump,
        Btrfs,
        BtrfsCompressed,
        Zfs,
        Xfs,
        Ext4,
        CeilingUring,
        CeilingDevice,
    )
}
