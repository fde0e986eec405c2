/* Faults that a test build can switch on, one at a time, to show that the crash tests notice (tests/crash). Without
 * COWFS_MUTATIONS nothing of this is compiled: MUTATED() is the constant false. */
#ifndef BTREE_MUTATION_H
#define BTREE_MUTATION_H

#ifdef COWFS_MUTATIONS
/* Each by what holds as long as it is off. */
#define MUTATIONS(X)                                                                                                   \
    X(COMMIT_FLUSH, "a commit returns only after a flush")                                                             \
    X(COMMIT_OF_WRITTEN, "a commit flushes also what somebody else has written")                                       \
    X(SNAPSHOT_DURABLE, "a durable snapshot is durable when it returns")                                               \
    X(DATA_WITH_GROUP, "the data that a group names is written before the flush that makes the group durable")         \
    X(ONE_GROUP_IN_DOUBT, "a group is written only when the one before is flushed")                                    \
    X(GROUP_TRUSTED_EARLY, "a group names as flushed only what was")                                                   \
    X(JOURNAL_ROOM, "the journal does not run into its own tail")                                                      \
    X(JOURNAL_LOST, "a journal that ends before a flushed group is damaged")                                           \
    X(GROUP_CHECKSUM, "a torn group is none")                                                                          \
    X(GROUP_SEQUENCE, "a group follows the one before it")                                                             \
    X(GROUP_POOL, "a group is this pool's")                                                                            \
    X(GROUP_DATA, "an unflushed group whose data is missing is none")                                                  \
    X(GROUP_COMPRESSED, "so is one whose compressed data is missing")                                                  \
    X(GROUP_FLUSHED, "what rots in the data of a flushed group does not end the journal")                              \
    X(GROUP_LAST_WORD, "within a group the last word on a block counts")                                               \
    X(REPLAY_SNAPSHOT_EPOCH, "a snapshot has the epoch that it had before the failure")                                \
    X(REPLAY_IDS, "ids of replayed objects are not given out again")                                                   \
    X(REPLAY_BUSY, "what is replayed is not handed out")                                                               \
    X(SUPERBLOCK_RING, "a superblock does not overwrite the one before it")                                            \
    X(SUPERBLOCK_SECOND, "a superblock is written twice")                                                              \
    X(SUPERBLOCK_SECOND_READ, "a superblock is looked for in both places")                                             \
    X(SUPERBLOCK_CHECKSUM, "a damaged superblock is none")                                                             \
    X(SUPERBLOCK_NEWEST, "the newest superblock counts")                                                               \
    X(FLUSH_BEFORE_SUPERBLOCK, "what a superblock leads to is flushed before it is written")                           \
    X(FLUSH_AFTER_SUPERBLOCK, "a superblock is flushed before what it no longer needs is used again")                  \
    X(BITMAP_WRITTEN, "a checkpoint writes the bitmap")                                                                \
    X(JOURNAL_FROM_FREEZE, "replay begins where the trees of the checkpoint were frozen")                              \
    X(FREEZE_EPOCH, "what is born after a freeze is younger than the superblock says")                                 \
    X(FREEZE_CUT, "a freeze ends a group")                                                                             \
    X(FREEZE_BITMAP, "a checkpoint writes the bitmap as it was when it froze the trees")                               \
    X(CHECKPOINT_DATA, "a checkpoint writes the data that its trees name")                                             \
    X(FREES_AFTER_CHECKPOINT, "what a checkpoint frees is not used before its superblock is durable")                  \
    X(JOURNAL_TAIL, "the journal before a freeze is kept until the checkpoint is durable")                             \
    X(FREES_AT_ONCE, "freed blocks wait for a checkpoint")                                                             \
    X(FREES_BESIDE, "blocks freed beside a checkpoint wait for the next one")                                          \
    X(FREES_BY_CHECKPOINT, "what a checkpoint itself frees waits for its superblock")                                  \
    X(DEFERRED_FREED, "nodes that are given up while they are written are freed")                                      \
    X(SNAPSHOT_BLOCKS, "blocks that a snapshot sees are not freed")                                                    \
    X(CLONE_FLOOR, "what a clone shares with its origin is not its own")                                               \
    X(ORIGIN_BLOCKS, "nor do its snapshots bury it")                                                                   \
    X(DELETION_FLOOR, "deleting a snapshot frees nothing that an older one sees")                                      \
    X(QUEUE_SAVED, "a deletion that a checkpoint does not get to is recorded")                                         \
    X(QUEUE_DONE, "a deletion is done once")                                                                           \
    X(QUEUE_IDS, "ids of recorded deletions are not given out again")                                                  \
    X(COPY_FOR_SNAPSHOT, "a node that a snapshot sees is copied before it changes")                                    \
    X(COPY_FOR_CHECKPOINT, "a node that a running checkpoint writes is copied before it changes")                      \
    X(SEQUENCE_JUMP, "no group of before a crash can follow one of after")                                             \
    X(CHECKPOINT_AFTER_RECOVERY, "a journal is replayed once")                                                         \
    X(BITMAP_CHECKSUM, "a torn bitmap page is none")                                                                   \
    X(BITMAP_OF_SUPERBLOCK, "a bitmap page newer than the superblock is none")                                         \
    X(BITMAP_ALTERNATES, "a bitmap page does not overwrite the one before it")                                         \
    X(BITMAP_STALE, "a page that an unfinished checkpoint left is overwritten by the next")                            \
    X(BITMAP_DIGEST, "a lost or stale bitmap page is noticed")                                                         \
    X(BITMAP_THAWED, "the next checkpoint writes the bitmap as it is then")                                            \
    X(NODE_CHECKSUM, "a damaged node is noticed")                                                                      \
    X(NODE_SECOND, "a node is written twice")                                                                          \
    X(NODE_SECOND_READ, "a node with a bad copy is read from the other one")                                           \
    X(DATA_CHECKSUM, "damaged data is noticed")                                                                        \
    X(CONTENT_CHECKSUM, "damaged compressed data is noticed")                                                          \
    X(IN_PLACE, "a block that was written, or that a group names, is not changed in place")                            \
    X(ORPHAN_RECORD, "a file without a name has a record that leads to it")                                            \
    X(ORPHANS_FINISHED, "opening removes files without a name")                                                        \
    X(TRUNCATION_MARK, "a truncation that was cut short is finished at opening")                                       \
    X(FORMAT_ERASES, "a new pool leaves nothing of an old one")                                                        \
    X(FORMAT_FLUSH, "a new pool is durable when it is made")

#define MUTATION_ENUMERATOR(name, promise) MUTATION_##name,
enum mutation { MUTATION_NONE, MUTATIONS(MUTATION_ENUMERATOR) };
extern int store_mutation;
#define MUTATED(name) (store_mutation == MUTATION_##name)
#else
#define MUTATED(name) false
#endif

#endif
