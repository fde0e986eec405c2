/* Shared parts of the Python extension `btree._store`.
 *
 * The GIL is released around every call into the store or a storage. Bodies and callbacks run without it: they see
 * memory that is copied, or pointers into bytes objects which the arguments of the running call keep alive. */
#ifndef BTREE_BINDING_H
#define BTREE_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>

#include "store.h"

#define STORE_CAPSULE_NAME "btree.store"

/* ---- module state and errors (binding.c) ---- */

struct module_state {
    PyTypeObject *storage_type;
    PyTypeObject *store_type;
    PyObject *store_error;
    PyObject *volume_info;
    PyObject *snapshot_info;
    PyObject *storage_event;
};

extern struct PyModuleDef binding_module;
/* NULL with an exception when the type is not of this module. */
struct module_state *binding_state(PyTypeObject *type);

/* Sets OSError from a negative errno; returns NULL. */
PyObject *binding_raise(int result);
/* None when result is 0, else what binding_raise() does. */
PyObject *binding_none(int result);
/* Sets StoreError with the store's own words, or the system's where it has none; returns NULL. */
PyObject *binding_raise_failure(struct module_state *state, int result, const struct store_failure *failure);

/* Converters for "O&". Names are str, in UTF-8 with surrogateescape; the result is a bytes object, NUL inside is
 * refused with EINVAL. */
int binding_convert_u64(PyObject *object, void *out);
int binding_convert_name(PyObject *object, void *out);
PyObject *binding_name(const char *name);

/* ---- gate: use and closing from several threads (binding.c) ---- */

/* Callers pass the gate while it is open; the one that closes it waits until all of them have left. The mutex is
 * never held while the GIL is waited for. */
struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t users;
    enum { GATE_SHUT, GATE_OPEN, GATE_CLOSING } state;
};

int gate_init(struct gate *gate); /* shut; 0 or a negative errno */
void gate_destroy(struct gate *gate);
void gate_open(struct gate *gate);
/* False, with ValueError set ("`what` is closed"), unless the gate is open. Needs the GIL. */
bool gate_enter(struct gate *gate, const char *what);
void gate_leave(struct gate *gate);
/* True for the one caller that has to close what is behind the gate and then call gate_shut(); false when it is shut
 * already or somebody else has just shut it. Waits, so call it without the GIL. */
bool gate_close(struct gate *gate);
void gate_shut(struct gate *gate);

/* ---- records: what goes between Python and bodies, as copies (binding.c) ---- */

#define RECORD_PARTS 3
#define RECORD_ABSENT UINT32_MAX

struct record { /* up to three byte strings one after another in the list's bytes */
    size_t offset;
    uint32_t lengths[RECORD_PARTS]; /* RECORD_ABSENT: no such part */
};

struct record_list {
    uint8_t *bytes;
    size_t bytes_used;
    size_t bytes_capacity;
    struct record *records;
    size_t count;
    size_t capacity;
};

struct record_part {
    const void *bytes; /* NULL: absent */
    size_t length;
};

/* 0 or -ENOMEM. */
int records_append(struct record_list *list, const struct record_part parts[RECORD_PARTS]);
/* Forgets the records from `count` on. */
void records_truncate(struct record_list *list, size_t count);
void records_free(struct record_list *list);
const uint8_t *record_part(const struct record_list *list, size_t index, unsigned part);
/* Part of a record as bytes, or None. */
PyObject *record_object(const struct record_list *list, size_t index, unsigned part);
/* A list of tuples of the first `part_count` parts of each record. */
PyObject *records_object(const struct record_list *list, unsigned part_count);

/* ---- Storage (binding_storage.c) ---- */

/* What a Store or a recorder is given instead of the storage itself: passes everything on but close(), which the
 * Python object decides about. */
struct storage_proxy {
    struct storage base;
    struct storage *target;
};

struct storage_object {
    PyObject_HEAD
    struct gate gate;
    struct storage *storage;
    struct storage_proxy proxy;
    bool volatile_medium; /* memory at the bottom: its content lives as long as this object, as that of a medium */
    bool attached;        /* a Store or a recorder works on it; guarded by the GIL */
    struct storage_object *inner; /* under a recorder */
};

extern PyType_Spec binding_storage_spec;
/* Takes it for a Store or a recorder; ValueError when it is closed or taken. The reference stays the caller's. */
bool storage_object_attach(struct storage_object *object);
/* The Store or recorder is done with it: closes it unless `keep` is set or its medium is memory. */
void storage_object_detach(struct storage_object *object, bool keep);

/* ---- Store (binding_store.c; methods in binding_items.c, _extents.c, _volumes.c and _travel.c) ---- */

struct store_object {
    PyObject_HEAD
    struct gate gate;
    struct store *store;
    struct storage_object *storage;
};

extern PyType_Spec binding_store_spec;

#define STORE_METHOD(name) PyObject *name(struct store_object *self, PyObject *arguments, PyObject *keywords)

/* Inside a body: says that the blocks of the extent under this key, if there is one, are no longer referred to. */
int binding_kill_extent(struct transaction *transaction, const void *key, size_t key_length);

STORE_METHOD(binding_get);
STORE_METHOD(binding_put);
STORE_METHOD(binding_delete);
STORE_METHOD(binding_apply);
STORE_METHOD(binding_bulk_load);
STORE_METHOD(binding_scan);
STORE_METHOD(binding_diff);
STORE_METHOD(binding_write_extent);
STORE_METHOD(binding_read_extent);
STORE_METHOD(binding_delete_extent);

STORE_METHOD(binding_damages);
STORE_METHOD(binding_scrub);
PyObject *binding_stalls(struct store_object *self, PyObject *unused);

STORE_METHOD(binding_volume_create);
STORE_METHOD(binding_volume_find);
STORE_METHOD(binding_volume_get);
STORE_METHOD(binding_volumes);
STORE_METHOD(binding_volume_destroy);
STORE_METHOD(binding_snapshot);
STORE_METHOD(binding_snapshot_find);
STORE_METHOD(binding_volume_changed);
STORE_METHOD(binding_snapshot_get);
STORE_METHOD(binding_snapshots);
STORE_METHOD(binding_snapshot_delete);
STORE_METHOD(binding_snapshot_annotate);
STORE_METHOD(binding_clone);
STORE_METHOD(binding_rollback);
STORE_METHOD(binding_snapshots_space);
STORE_METHOD(binding_snapshots_unique);
STORE_METHOD(binding_snapshot_written);
STORE_METHOD(binding_property_set);
STORE_METHOD(binding_property_get);
STORE_METHOD(binding_properties);

STORE_METHOD(binding_snapshot_at);
STORE_METHOD(binding_snapshot_before);
STORE_METHOD(binding_snapshot_since);
STORE_METHOD(binding_promote);
STORE_METHOD(binding_heads);

#endif
