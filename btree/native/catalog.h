/* Volumes, chains, snapshots and properties in memory, and their records: what internal.h has of them. */
#ifndef BTREE_CATALOG_H
#define BTREE_CATALOG_H

#include "internal.h"

/* ---- catalog.c ------------------------------------------------------------------------------------------------ */
int catalog_create(struct store *store);
void catalog_destroy(struct store *store);
int catalog_load(struct store *store, struct store_failure *failure);
struct snapshot *snapshot_by_id(struct store *store, uint64_t id);
struct snapshot *snapshot_by_name(struct store *store, const struct volume *volume, const char *name);
/* First slot with id >= the given one. */
size_t volume_slot(const struct volume *volume, uint64_t id);
const struct tree_root *object_root(struct store *store, uint64_t object_id, struct chain **chain);
void mark_chain_dirty(struct store *store, struct chain *chain);
void mark_snapshot_dirty(struct store *store, struct snapshot *snapshot);
struct queue_item *queue_append(struct store *store, enum queue_kind kind);
void record_removed(struct store *store, enum system_key_type type, uint64_t id);
/* The changes themselves, used by calls and by replay alike; ids and times are the caller's. Under the store lock. */
struct volume_arguments {
    uint64_t id, chain_id, created_ns;
    const char *name;
};
int apply_volume_create(struct store *store, const struct volume_arguments *arguments);
int apply_volume_destroy(struct store *store, uint64_t volume_id);
int apply_snapshot_create(struct store *store, uint64_t volume_id, uint64_t snapshot_id, uint64_t created_ns,
                          const char *name);
int apply_snapshot_delete(struct store *store, uint64_t snapshot_id);
int apply_annotate(struct store *store, uint64_t snapshot_id, uint32_t hold_count, const void *annotation,
                   size_t annotation_length);
int apply_clone(struct store *store, uint64_t snapshot_id, const struct volume_arguments *arguments);
int apply_rollback(struct store *store, uint64_t volume_id, uint64_t snapshot_id, uint64_t guard_id,
                   uint64_t chain_id, uint64_t created_ns, const char *guard_name);
int name_check(const char *name);
struct space_need {
    enum claim_class claim_class; /* CLAIM_METADATA: deletions, which always find room */
    uint64_t pins, unpins;        /* objects: a tree that becomes shared with a snapshot, one that is replaced */
};
/* Takes the store lock and makes sure that a record can follow a change: afterwards nothing can fail. Ends with
 * catalog_end_change(), which passes the result on. */
int catalog_begin_change(struct store *store, size_t record_bytes, const struct space_need *need);
int catalog_end_change(struct store *store, int result);
struct chain *chain_attach(struct store *store, uint64_t id, struct volume *volume, struct snapshot *origin);
struct volume *volume_attach(struct store *store, uint64_t id, const char *name);
/* `volume` NULL: hidden. */
struct snapshot *snapshot_attach(struct store *store, struct chain *chain, struct volume *volume, uint64_t id,
                                 const char *name);
/* To another volume, but for that one's slots. */
void snapshot_give(struct store *store, struct snapshot *snapshot, struct volume *volume);

/* ---- promote.c ------------------------------------------------------------------------------------------------ */
/* -ENOENT no such volume, -EINVAL no clone of another volume's snapshot, -EEXIST both have a snapshot of one name. */
int apply_promote(struct store *store, uint64_t volume_id);

/* ---- catalog_index.c ------------------------------------------------------------------------------------------ */
struct volume *volume_by_id(struct store *store, uint64_t id);
struct volume *volume_by_name(struct store *store, const char *name);
/* The one with the least id above the given one. */
struct volume *volume_after(struct store *store, uint64_t id);
struct chain *chain_by_id(struct store *store, uint64_t id);
/* 0 or -ENOMEM. Name and id are set, and there is none of either yet. */
int volume_index(struct store *store, struct volume *volume);
void volume_unindex(struct store *store, const struct volume *volume);
int chain_index(struct store *store, struct chain *chain);
void chain_unindex(struct store *store, const struct chain *chain);
void catalog_index_destroy(struct store *store);

/* ---- catalog_save.c ------------------------------------------------------------------------------------------- */
/* Under the store lock, at a checkpoint's freeze: gathers every changed record into the checkpoint. */
int catalog_freeze(struct store *store);
/* A record to be written, with room for its value; NULL: out of memory. */
struct saved_record *record_add(struct checkpoint *checkpoint, enum system_key_type type, uint64_t id,
                                size_t value_length, int16_t root_at);

/* ---- properties.c --------------------------------------------------------------------------------------------- */
int apply_property(struct store *store, uint64_t volume_id, uint64_t id, const char *name, const void *value,
                   size_t length);
/* To a volume that has none; the first copy gets `first_id`, the next ones those after it. */
int properties_copy(struct store *store, const struct volume *from, struct volume *to, uint64_t first_id);
/* When the volume is destroyed: their records go too. */
void properties_forget(struct store *store, struct volume *volume);
void properties_free(struct volume *volume);
int properties_save(struct checkpoint *checkpoint, struct volume *volume);
int property_load(struct store *store, uint64_t id, const uint8_t *value, size_t length);
int property_replay(struct store *store, const uint8_t *body, size_t length);

#endif
