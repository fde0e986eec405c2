/* The ioctls of a cowfs mount, for programs: on any file or directory of it that is open. */
#ifndef COWFS_IOCTL_H
#define COWFS_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Takes a snapshot of the volume that the descriptor lies in: of every operation that returned before. It is durable
 * when the call returns, unless COWFS_SNAPSHOT_NO_SYNC. EEXIST, EINVAL (a name that cannot be), EPERM (neither root nor
 * the owner of the root directory), EROFS, ENOSPC, EIO; with the mount option cache=back also EBUSY (too many of these
 * calls are waiting) and ENXIO (files are open for writing, and the mountpoint does not lead to the mount any more). */
#define COWFS_SNAPSHOT_NO_SYNC 1u
struct cowfs_snapshot {
    __u32 flags;
    __u32 reserved; /* 0 */
    char name[256]; /* NUL-terminated */
};
#define COWFS_IOC_SNAPSHOT _IOW(0xC0, 1, struct cowfs_snapshot)

/* The same, and tells what was taken. With cache=back ENOTTY: use the control socket. */
struct cowfs_snapshot_taken {
    __u32 flags;
    __u32 reserved; /* 0 */
    char name[256];
    __u64 id, epoch, created_ns; /* out */
};
#define COWFS_IOC_SNAPSHOT_TAKE _IOWR(0xC0, 2, struct cowfs_snapshot_taken)

/* Deletes the snapshot of this name; the deletion is durable when the call returns, unless COWFS_SNAPSHOT_NO_SYNC.
 * ENOENT, EBUSY (it is held), and ENOTTY for one that was looked at by `.cowfs/snapshot/NAME`: the control socket
 * deletes it and makes the kernel forget the name. */
#define COWFS_IOC_SNAPSHOT_DESTROY _IOW(0xC0, 3, struct cowfs_snapshot)

#endif
