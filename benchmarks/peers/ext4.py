"""ext4: overwrites in place, journals metadata; no snapshots, no checksums of data."""

from benchmarks.peers.base import KernelPeer, first_line


class Ext4(KernelPeer):
    name = "ext4"
    title = "ext4"
    kind = "ext4"
    # Everything is initialized while it is made, so that no kernel thread does it while others are measured.
    format_words = ("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
    mount_options = "noatime,nodiscard"

    def version(self) -> str:
        return first_line("mkfs.ext4", "-V")
