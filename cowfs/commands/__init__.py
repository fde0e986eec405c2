"""The commands: `main` is `cowfs` with one module per verb; mkfs, fsck, mount and umount_helper are commands too."""
