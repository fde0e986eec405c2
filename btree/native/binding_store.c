/* The Python type Store: its life, durability, checking and figures. */
#include "binding.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

/* ---- life ---------------------------------------------------------------------------------------------------- */

/* A str argument as UTF-8 in a zeroed field that stays NUL-terminated; ValueError when it does not fit. */
static bool copy_label(const char *label, Py_ssize_t length, char *out, size_t size)
{
    if ((size_t)length >= size || strlen(label) != (size_t)length) {
        PyErr_Format(PyExc_ValueError, "a label has at most %zu bytes and no NUL", size - 1);
        return false;
    }
    memcpy(out, label, (size_t)length);
    return true;
}

static PyObject *store_py_format(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"storage", "node_size_bytes", "metadata_copies", "journal_size_bytes", "label", "uuid",
                            NULL};
    struct module_state *state = binding_state(type);
    struct store_parameters parameters = {0};
    struct store_failure failure = {{0}};
    struct storage_object *storage = NULL;
    uint64_t node_size_bytes = 0;
    uint64_t metadata_copies = 0;
    const char *label = "";
    const char *uuid = "";
    Py_ssize_t label_length = 0;
    Py_ssize_t uuid_length = 0;
    int result;

    if (state == NULL
        || !PyArg_ParseTupleAndKeywords(arguments, keywords, "O!|$O&O&O&s#y#:format", names, state->storage_type,
                                        &storage, binding_convert_u64, &node_size_bytes, binding_convert_u64,
                                        &metadata_copies, binding_convert_u64, &parameters.journal_size_bytes, &label,
                                        &label_length, &uuid, &uuid_length)) {
        return NULL;
    }
    if (node_size_bytes > UINT32_MAX || metadata_copies > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "node_size_bytes or metadata_copies is out of range");
        return NULL;
    }
    parameters.node_size_bytes = (uint32_t)node_size_bytes;
    parameters.metadata_copies = (uint32_t)metadata_copies;
    if (!copy_label(label, label_length, parameters.label, sizeof(parameters.label))) {
        return NULL;
    }
    if (uuid_length != 0 && uuid_length != (Py_ssize_t)sizeof(parameters.uuid)) {
        PyErr_Format(PyExc_ValueError, "a uuid has %zu bytes", sizeof(parameters.uuid));
        return NULL;
    }
    memcpy(parameters.uuid, uuid, (size_t)uuid_length);
    if (!storage_object_attach(storage)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_format(&storage->proxy.base, &parameters, &failure);
    Py_END_ALLOW_THREADS
    storage_object_detach(storage, true);
    if (result != 0) {
        return binding_raise_failure(state, result, &failure);
    }
    Py_RETURN_NONE;
}

static PyObject *store_py_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"storage", "cache_bytes_max", "dirty_bytes_max", "buffer_bytes_max", "commit_interval_ms",
                            "read_only", "background", "rebuild_space",
                            "sequence_max", NULL};
    struct module_state *state = binding_state(type);
    struct store_options options = {0};
    struct store_failure failure = {{0}};
    struct storage_object *storage = NULL;
    struct store_object *self;
    uint64_t cache_bytes_max = 0;
    uint64_t dirty_bytes_max = 0;
    uint64_t buffer_bytes_max = 0;
    uint64_t commit_interval_ms = 0;
    int read_only = 0;
    int background = 1;
    int rebuild_space = 0;
    int result;

    if (state == NULL
        || !PyArg_ParseTupleAndKeywords(arguments, keywords, "O!|$O&O&O&O&pppO&:Store", names, state->storage_type,
                                        &storage, binding_convert_u64, &cache_bytes_max, binding_convert_u64,
                                        &dirty_bytes_max, binding_convert_u64, &buffer_bytes_max, binding_convert_u64,
                                        &commit_interval_ms, &read_only, &background, &rebuild_space,
                                        binding_convert_u64, &options.sequence_max)) {
        return NULL;
    }
    if (commit_interval_ms > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "commit_interval_ms is out of range");
        return NULL;
    }
    options.cache_bytes_max = (size_t)cache_bytes_max;
    options.dirty_bytes_max = (size_t)dirty_bytes_max;
    options.buffer_bytes_max = (size_t)buffer_bytes_max;
    options.commit_interval_ms = (uint32_t)commit_interval_ms;
    options.read_only = read_only != 0;
    options.no_background = background == 0;
    options.rebuild_space = rebuild_space != 0;
    self = (struct store_object *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    result = gate_init(&self->gate);
    if (result != 0) {
        type->tp_free(self);
        Py_DECREF(type);
        return binding_raise(result);
    }
    if (!storage_object_attach(storage)) {
        Py_DECREF(self);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_open(&storage->proxy.base, &options, &self->store, &failure);
    Py_END_ALLOW_THREADS
    if (result != 0) {
        storage_object_detach(storage, true);
        Py_DECREF(self);
        return binding_raise_failure(state, result, &failure);
    }
    self->storage = (struct storage_object *)Py_NewRef(storage);
    gate_open(&self->gate);
    return (PyObject *)self;
}

/* Closes once; later and concurrent calls wait for the first and return 0. Needs the GIL. */
static int store_object_end(struct store_object *self, bool abandon)
{
    int result = 0;
    bool mine;

    Py_BEGIN_ALLOW_THREADS
    mine = gate_close(&self->gate);
    if (mine) {
        if (abandon) {
            store_abandon(self->store);
        } else {
            result = store_close(self->store);
        }
        self->store = NULL;
    }
    Py_END_ALLOW_THREADS
    if (mine) {
        storage_object_detach(self->storage, false);
        Py_CLEAR(self->storage);
        gate_shut(&self->gate);
    }
    return result;
}

static void store_dealloc(struct store_object *self)
{
    PyTypeObject *type = Py_TYPE(self);

    if (self->storage != NULL) {
        PyObject *error_type;
        PyObject *error;
        PyObject *traceback;
        int result;

        PyErr_Fetch(&error_type, &error, &traceback);
        /* Nobody is left to be told: what fails here goes to sys.unraisablehook. */
        if (PyErr_WarnEx(PyExc_ResourceWarning, "a Store was not closed", 1) != 0) {
            PyErr_WriteUnraisable(NULL);
        }
        result = store_object_end(self, false);
        if (result < 0) {
            binding_raise(result);
            PyErr_WriteUnraisable(NULL);
        }
        PyErr_Restore(error_type, error, traceback);
    }
    gate_destroy(&self->gate);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *store_py_close(struct store_object *self, PyObject *Py_UNUSED(unused))
{
    return binding_none(store_object_end(self, false));
}

static PyObject *store_py_abandon(struct store_object *self, PyObject *Py_UNUSED(unused))
{
    return binding_none(store_object_end(self, true));
}

static PyObject *store_py_enter(struct store_object *self, PyObject *Py_UNUSED(unused))
{
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    gate_leave(&self->gate);
    return Py_NewRef(self);
}

static PyObject *store_py_exit(struct store_object *self, PyObject *Py_UNUSED(details))
{
    return binding_none(store_object_end(self, false));
}

/* ---- durability ---------------------------------------------------------------------------------------------- */

static PyObject *store_py_commit(struct store_object *self, PyObject *Py_UNUSED(unused))
{
    int result;

    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_commit(self->store);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return binding_none(result);
}

static PyObject *store_py_checkpoint(struct store_object *self, PyObject *Py_UNUSED(unused))
{
    int result;

    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_checkpoint(self->store);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return binding_none(result);
}

/* ---- checking ------------------------------------------------------------------------------------------------ */

struct check_messages {
    struct record_list list;
    int result;
};

static void check_report(void *argument, const char *message)
{
    struct check_messages *messages = argument;
    const struct record_part parts[RECORD_PARTS] = {{message, strlen(message)}};
    int result = records_append(&messages->list, parts);

    if (result != 0) {
        messages->result = result;
    }
}

static PyObject *store_py_check(struct store_object *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"read_data", NULL};
    struct check_messages messages = {0};
    PyObject *list = NULL;
    int read_data = 0;
    int64_t problems;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "|$p:check", names, &read_data)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    problems = store_check(self->store, read_data != 0, check_report, &messages);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    if (problems >= 0 && messages.result != 0) {
        problems = messages.result;
    }
    if (problems < 0) {
        binding_raise((int)problems);
        goto done;
    }
    list = PyList_New((Py_ssize_t)messages.list.count);
    for (size_t index = 0; list != NULL && index < messages.list.count; index++) {
        PyObject *text = PyUnicode_DecodeUTF8((const char *)record_part(&messages.list, index, 0),
                                              (Py_ssize_t)messages.list.records[index].lengths[0], "backslashreplace");

        if (text == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t)index, text);
        }
    }
done:
    records_free(&messages.list);
    return list;
}

/* ---- figures ------------------------------------------------------------------------------------------------- */

enum figure_kind { FIGURE_U64, FIGURE_U32, FIGURE_I32, FIGURE_BOOL, FIGURE_UUID, FIGURE_LABEL };

struct figure {
    const char *name;
    size_t offset;
    enum figure_kind kind;
};

#define FIGURE(kind, field) {#field, offsetof(struct store_statistics, field), kind}

static const struct figure figures[] = {
    FIGURE(FIGURE_UUID, uuid),
    FIGURE(FIGURE_LABEL, label),
    FIGURE(FIGURE_U32, format_version),
    FIGURE(FIGURE_U32, node_size_bytes),
    FIGURE(FIGURE_U32, metadata_copies),
    FIGURE(FIGURE_BOOL, read_only),
    FIGURE(FIGURE_I32, failed_errno),
    FIGURE(FIGURE_U64, epoch),
    FIGURE(FIGURE_U64, checkpoint_sequence),
    FIGURE(FIGURE_U64, size_blocks),
    FIGURE(FIGURE_U64, free_blocks),
    FIGURE(FIGURE_U64, used_blocks),
    FIGURE(FIGURE_U64, reserved_blocks),
    FIGURE(FIGURE_U64, dead_blocks),
    FIGURE(FIGURE_U64, pending_blocks),
    FIGURE(FIGURE_U64, available_blocks),
    FIGURE(FIGURE_U64, volume_count),
    FIGURE(FIGURE_U64, snapshot_count),
    FIGURE(FIGURE_U64, deletion_queue_length),
    FIGURE(FIGURE_U64, cache_bytes),
    FIGURE(FIGURE_U64, dirty_bytes),
    FIGURE(FIGURE_U64, buffer_bytes),
    FIGURE(FIGURE_U64, journal_used_bytes),
    FIGURE(FIGURE_U64, journal_size_bytes),
    FIGURE(FIGURE_U64, transactions),
    FIGURE(FIGURE_U64, nodes_read),
    FIGURE(FIGURE_U64, nodes_written),
    FIGURE(FIGURE_U64, nodes_copied),
    FIGURE(FIGURE_U64, nodes_touched),
    FIGURE(FIGURE_U64, commits),
    FIGURE(FIGURE_U64, checkpoints),
    FIGURE(FIGURE_U64, storage_reads),
    FIGURE(FIGURE_U64, storage_writes),
    FIGURE(FIGURE_U64, storage_flushes),
    FIGURE(FIGURE_U64, storage_read_bytes),
    FIGURE(FIGURE_U64, storage_written_bytes),
    FIGURE(FIGURE_U64, data_written_bytes),
    FIGURE(FIGURE_U64, journal_written_bytes),
    FIGURE(FIGURE_U64, metadata_written_bytes),
    FIGURE(FIGURE_U64, checksum_mismatches),
    FIGURE(FIGURE_U64, repairs),
    FIGURE(FIGURE_U64, replayed_groups),
    FIGURE(FIGURE_U64, snapshots_created),
    FIGURE(FIGURE_U64, snapshots_deleted),
};

static PyObject *figure_object(const struct store_statistics *statistics, const struct figure *figure)
{
    const char *field = (const char *)statistics + figure->offset;

    switch (figure->kind) {
    case FIGURE_U64:
        return PyLong_FromUnsignedLongLong(*(const uint64_t *)(const void *)field);
    case FIGURE_U32:
        return PyLong_FromUnsignedLong(*(const uint32_t *)(const void *)field);
    case FIGURE_I32:
        return PyLong_FromLong(*(const int32_t *)(const void *)field);
    case FIGURE_BOOL:
        return PyBool_FromLong(*(const bool *)(const void *)field);
    case FIGURE_UUID:
        return PyBytes_FromStringAndSize(field, (Py_ssize_t)sizeof(statistics->uuid));
    case FIGURE_LABEL:
        return PyUnicode_DecodeUTF8(field, (Py_ssize_t)strnlen(field, sizeof(statistics->label)), "replace");
    }
    Py_UNREACHABLE();
}

static PyObject *store_py_statistics(struct store_object *self, PyObject *Py_UNUSED(unused))
{
    struct store_statistics statistics = {0};
    PyObject *result;

    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    store_statistics(self->store, &statistics);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    result = PyDict_New();
    for (size_t index = 0; result != NULL && index < sizeof(figures) / sizeof(figures[0]); index++) {
        PyObject *value = figure_object(&statistics, &figures[index]);

        if (value == NULL || PyDict_SetItemString(result, figures[index].name, value) != 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(value);
    }
    return result;
}

static PyObject *store_py_capsule(struct store_object *self, PyObject *Py_UNUSED(unused))
{
    PyObject *capsule;

    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    capsule = PyCapsule_New(self->store, STORE_CAPSULE_NAME, NULL);
    gate_leave(&self->gate);
    return capsule;
}

/* ---- type ---------------------------------------------------------------------------------------------------- */

#define METHOD(name, function, flags, signature) {name, (PyCFunction)(void (*)(void))(function), flags, signature}
#define WITH_KEYWORDS (METH_VARARGS | METH_KEYWORDS)

static PyMethodDef store_methods[] = {
    METHOD("format", store_py_format, WITH_KEYWORDS | METH_CLASS,
           "format($type, /, storage, *, node_size_bytes=0, metadata_copies=0, journal_size_bytes=0, label='', "
           "uuid=b'')\n--\n\nWrites an empty pool; what the storage held is lost."),
    METHOD("close", store_py_close, METH_NOARGS,
           "close($self, /)\n--\n\nCommits, writes a checkpoint, closes. Raises what of it failed; closed anyway."),
    METHOD("abandon", store_py_abandon, METH_NOARGS, "abandon($self, /)\n--\n\nDrops what is unwritten."),
    METHOD("__enter__", store_py_enter, METH_NOARGS, "__enter__($self, /)\n--\n\n"),
    METHOD("__exit__", store_py_exit, METH_VARARGS, "__exit__($self, /, *details)\n--\n\n"),
    METHOD("get", binding_get, WITH_KEYWORDS, "get($self, /, object_id, key)\n--\n\nThe value, or None."),
    METHOD("put", binding_put, WITH_KEYWORDS, "put($self, /, volume_id, key, value)\n--\n\nOne put."),
    METHOD("delete", binding_delete, WITH_KEYWORDS,
           "delete($self, /, volume_id, key)\n--\n\nDeletes an item; an absent key is no error."),
    METHOD("apply", binding_apply, WITH_KEYWORDS,
           "apply($self, /, volume_id, changes, *, keep_blocks=False)\n--\n\n"
           "All puts and deletes (None) in order, or none of them."),
    METHOD("bulk_load", binding_bulk_load, WITH_KEYWORDS,
           "bulk_load($self, /, volume_id, items)\n--\n\nMany puts in several transactions; returns how many."),
    METHOD("scan", binding_scan, WITH_KEYWORDS,
           "scan($self, /, object_id, start=b'', stop=None, *, reverse=False, limit=0)\n--\n\n"
           "Items with start <= key < stop."),
    METHOD("write_extent", binding_write_extent, WITH_KEYWORDS,
           "write_extent($self, /, volume_id, key, data)\n--\n\nStores up to 32 blocks as one extent under key."),
    METHOD("read_extent", binding_read_extent, WITH_KEYWORDS,
           "read_extent($self, /, object_id, key)\n--\n\nThe verified data, or None."),
    METHOD("delete_extent", binding_delete_extent, WITH_KEYWORDS,
           "delete_extent($self, /, volume_id, key)\n--\n\nDeletes an extent and frees its blocks."),
    METHOD("diff", binding_diff, WITH_KEYWORDS,
           "diff($self, /, old_object_id, new_object_id, *, start=b'', limit=0)\n--\n\n"
           "(key, old value, new value) where they differ."),
    METHOD("volume_create", binding_volume_create, WITH_KEYWORDS,
           "volume_create($self, /, name)\n--\n\nAn empty volume; returns its id."),
    METHOD("volume_find", binding_volume_find, WITH_KEYWORDS, "volume_find($self, /, name)\n--\n\nBy name; ENOENT."),
    METHOD("volume_get", binding_volume_get, WITH_KEYWORDS, "volume_get($self, /, volume_id)\n--\n\nBy id; ENOENT."),
    METHOD("volumes", binding_volumes, METH_VARARGS | METH_KEYWORDS, "volumes($self, /)\n--\n\nAll, by id."),
    METHOD("volume_destroy", binding_volume_destroy, WITH_KEYWORDS,
           "volume_destroy($self, /, volume_id)\n--\n\nThe volume and its snapshots; EBUSY when one is held."),
    METHOD("snapshot", binding_snapshot, WITH_KEYWORDS,
           "snapshot($self, /, volume_id, name, *, sync=True)\n--\n\nFreezes the volume's present content."),
    METHOD("volume_changed", binding_volume_changed, WITH_KEYWORDS,
           "volume_changed($self, /, volume_id)\n--\n\nWhether it changed since its last snapshot."),
    METHOD("snapshot_find", binding_snapshot_find, WITH_KEYWORDS,
           "snapshot_find($self, /, volume_id, name)\n--\n\nBy name; ENOENT."),
    METHOD("snapshot_get", binding_snapshot_get, WITH_KEYWORDS,
           "snapshot_get($self, /, snapshot_id)\n--\n\nBy id; ENOENT."),
    METHOD("snapshots", binding_snapshots, WITH_KEYWORDS,
           "snapshots($self, /, volume_id, *, after_id=0, before_id=0, limit=0)\n--\n\nA volume's snapshots by id."),
    METHOD("snapshot_delete", binding_snapshot_delete, WITH_KEYWORDS,
           "snapshot_delete($self, /, snapshot_id)\n--\n\nEBUSY when held."),
    METHOD("snapshot_annotate", binding_snapshot_annotate, WITH_KEYWORDS,
           "snapshot_annotate($self, /, snapshot_id, hold_count, annotation)\n--\n\nReplaces both."),
    METHOD("clone", binding_clone, WITH_KEYWORDS,
           "clone($self, /, snapshot_id, name)\n--\n\nA new volume with the snapshot's content; returns its id."),
    METHOD("rollback", binding_rollback, WITH_KEYWORDS,
           "rollback($self, /, volume_id, snapshot_id, guard_name)\n--\n\n"
           "Gives the volume the snapshot's content; returns the guard snapshot of what it was."),
    METHOD("snapshots_space", binding_snapshots_space, WITH_KEYWORDS,
           "snapshots_space($self, /, snapshot_ids)\n--\n\nBlocks that deleting all of them would free."),
    METHOD("snapshots_unique", binding_snapshots_unique, WITH_KEYWORDS,
           "snapshots_unique($self, /, snapshot_ids)\n--\n\nBlocks that deleting each alone would free."),
    METHOD("snapshot_written", binding_snapshot_written, WITH_KEYWORDS,
           "snapshot_written($self, /, snapshot_id, items_max)\n--\n\nBlocks of data that it brought."),
    METHOD("property_set", binding_property_set, WITH_KEYWORDS,
           "property_set($self, /, volume_id, name, value)\n--\n\nAn empty value removes it."),
    METHOD("property_get", binding_property_get, WITH_KEYWORDS,
           "property_get($self, /, volume_id, name)\n--\n\nThe value, or None."),
    METHOD("properties", binding_properties, WITH_KEYWORDS,
           "properties($self, /, volume_id)\n--\n\nValues by name."),
    METHOD("snapshot_at", binding_snapshot_at, WITH_KEYWORDS,
           "snapshot_at($self, /, volume_id, time_ns)\n--\n\nId of the newest at or before a time, or None."),
    METHOD("snapshot_before", binding_snapshot_before, WITH_KEYWORDS,
           "snapshot_before($self, /, volume_id, before_id)\n--\n\nId of the newest before another, or None."),
    METHOD("snapshot_since", binding_snapshot_since, WITH_KEYWORDS,
           "snapshot_since($self, /, object_id, epoch)\n--\n\nId of the oldest of its line since an epoch, or None."),
    METHOD("promote", binding_promote, WITH_KEYWORDS,
           "promote($self, /, volume_id)\n--\n\nGives a clone the snapshots up to its origin."),
    METHOD("heads", binding_heads, WITH_KEYWORDS,
           "heads($self, /, volume_id)\n--\n\n(id, origin snapshot, guard snapshot) of each, the oldest first."),
    METHOD("commit", store_py_commit, METH_NOARGS, "commit($self, /)\n--\n\nMakes all that returned durable."),
    METHOD("checkpoint", store_py_checkpoint, METH_NOARGS,
           "checkpoint($self, /)\n--\n\nCommits and makes freed space reusable."),
    METHOD("check", store_py_check, WITH_KEYWORDS,
           "check($self, /, *, read_data=False)\n--\n\nWalks everything; the problems found."),
    METHOD("damages", binding_damages, WITH_KEYWORDS,
           "damages($self, /, after=0)\n--\n\nPlaces found damaged since opening, and how often in all."),
    METHOD("scrub", binding_scrub, WITH_KEYWORDS,
           "scrub($self, /, position=b'', bytes_max=1048576)\n--\n\nOne step: (next position, figures, damage)."),
    METHOD("statistics", store_py_statistics, METH_NOARGS, "statistics($self, /)\n--\n\nFigures by name."),
    METHOD("stalls", binding_stalls, METH_NOARGS,
           "stalls($self, /)\n--\n\nWhat held locks that requests need, what these waited for, and how long."),
    METHOD("_capsule", store_py_capsule, METH_NOARGS, "_capsule($self, /)\n--\n\nThe struct store pointer."),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot store_slots[] = {
    {Py_tp_doc, "Store(storage, *, cache_bytes_max=0, dirty_bytes_max=0, buffer_bytes_max=0, commit_interval_ms=0, "
                "read_only=False, background=True, rebuild_space=False, sequence_max=0)\n--\n\n"
                "One open pool. Methods may be called from several threads. 0 means the default of a limit."},
    {Py_tp_new, store_py_new},
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_methods, store_methods},
    {0, NULL},
};

PyType_Spec binding_store_spec = {
    .name = "btree._store.Store",
    .basicsize = sizeof(struct store_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = store_slots,
};
