"""XFS: overwrites in place, journals metadata; no snapshots, no checksums of data."""

from benchmarks.peers.base import KernelPeer, first_line


class Xfs(KernelPeer):
    name = "xfs"
    title = "XFS"
    kind = "xfs"
    format_words = ("mkfs.xfs", "-q", "-f", "-K")
    mount_options = "noatime,nodiscard"

    def version(self) -> str:
        return first_line("mkfs.xfs", "-V")
