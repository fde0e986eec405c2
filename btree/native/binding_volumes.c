/* Store's methods on volumes and snapshots. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>

/* ---- records of what there is -------------------------------------------------------------------------------- */

static PyObject *volume_object(struct store_object *self, const struct store_volume *volume)
{
    struct module_state *state = binding_state(Py_TYPE(self));
    PyObject *name = state != NULL ? binding_name(volume->name) : NULL;

    if (name == NULL) {
        return NULL;
    }
    return PyObject_CallFunction(state->volume_info, "KNKKKK", (unsigned long long)volume->id, name,
                                 (unsigned long long)volume->created_ns,
                                 (unsigned long long)volume->origin_snapshot_id,
                                 (unsigned long long)volume->generation, (unsigned long long)volume->snapshot_count);
}

static PyObject *snapshot_object(struct store_object *self, const struct store_snapshot *snapshot)
{
    struct module_state *state = binding_state(Py_TYPE(self));
    PyObject *name = state != NULL ? binding_name(snapshot->name) : NULL;

    if (name == NULL) {
        return NULL;
    }
    return PyObject_CallFunction(
        state->snapshot_info, "KKNKKIIy#", (unsigned long long)snapshot->id, (unsigned long long)snapshot->volume_id,
        name, (unsigned long long)snapshot->epoch, (unsigned long long)snapshot->created_ns,
        (unsigned int)snapshot->clone_count, (unsigned int)snapshot->hold_count, (const char *)snapshot->annotation,
        (Py_ssize_t)snapshot->annotation_length);
}

/* ---- volumes ------------------------------------------------------------------------------------------------- */

STORE_METHOD(binding_volume_create)
{
    static char *names[] = {"name", NULL};
    PyObject *name = NULL;
    uint64_t id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:volume_create", names, binding_convert_name, &name)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        Py_DECREF(name);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_volume_create(self->store, PyBytes_AS_STRING(name), &id);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    Py_DECREF(name);
    return result < 0 ? binding_raise(result) : PyLong_FromUnsignedLongLong(id);
}

STORE_METHOD(binding_volume_find)
{
    static char *names[] = {"name", NULL};
    struct store_volume volume;
    PyObject *name = NULL;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:volume_find", names, binding_convert_name, &name)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        Py_DECREF(name);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_volume_find(self->store, PyBytes_AS_STRING(name), &volume);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    Py_DECREF(name);
    return result < 0 ? binding_raise(result) : volume_object(self, &volume);
}

STORE_METHOD(binding_volume_get)
{
    static char *names[] = {"volume_id", NULL};
    struct store_volume volume;
    uint64_t volume_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:volume_get", names, binding_convert_u64, &volume_id)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_volume_get(self->store, volume_id, &volume);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return result < 0 ? binding_raise(result) : volume_object(self, &volume);
}

STORE_METHOD(binding_volumes)
{
    static char *names[] = {NULL};
    struct store_volume volume;
    PyObject *list;
    uint64_t after_id = 0;
    int result = 0;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, ":volumes", names)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    list = PyList_New(0);
    while (list != NULL) {
        PyObject *object = NULL;

        Py_BEGIN_ALLOW_THREADS
        result = store_volume_next(self->store, after_id, &volume);
        Py_END_ALLOW_THREADS
        if (result == -ENOENT) {
            break;
        }
        if (result < 0) {
            binding_raise(result);
        } else {
            object = volume_object(self, &volume);
        }
        if (object == NULL || PyList_Append(list, object) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(object);
        after_id = volume.id;
    }
    gate_leave(&self->gate);
    return list;
}

/* A call that takes an id and returns nothing. */
static PyObject *call_with_id(struct store_object *self, PyObject *arguments, PyObject *keywords, char **names,
                              const char *format, int (*call)(struct store *, uint64_t))
{
    uint64_t id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, format, names, binding_convert_u64, &id)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = call(self->store, id);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return binding_none(result);
}

STORE_METHOD(binding_volume_destroy)
{
    static char *names[] = {"volume_id", NULL};
    return call_with_id(self, arguments, keywords, names, "O&:volume_destroy", store_volume_destroy);
}

/* ---- snapshots ----------------------------------------------------------------------------------------------- */

STORE_METHOD(binding_snapshot)
{
    static char *names[] = {"volume_id", "name", "sync", NULL};
    struct store_snapshot snapshot;
    PyObject *name = NULL;
    uint64_t volume_id = 0;
    int sync = 1;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&|$p:snapshot", names, binding_convert_u64, &volume_id,
                                     binding_convert_name, &name, &sync)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        Py_DECREF(name);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_snapshot_create(self->store, volume_id, PyBytes_AS_STRING(name), &snapshot);
    if (result == 0 && sync) {
        result = store_commit(self->store);
    }
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    Py_DECREF(name);
    return result < 0 ? binding_raise(result) : snapshot_object(self, &snapshot);
}

STORE_METHOD(binding_volume_changed)
{
    static char *names[] = {"volume_id", NULL};
    uint64_t volume_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:volume_changed", names, binding_convert_u64,
                                     &volume_id)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_volume_changed(self->store, volume_id);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return result < 0 ? binding_raise(result) : PyBool_FromLong(result);
}

STORE_METHOD(binding_snapshot_find)
{
    static char *names[] = {"volume_id", "name", NULL};
    struct store_snapshot snapshot;
    PyObject *name = NULL;
    uint64_t volume_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:snapshot_find", names, binding_convert_u64,
                                     &volume_id, binding_convert_name, &name)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        Py_DECREF(name);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_snapshot_find(self->store, volume_id, PyBytes_AS_STRING(name), &snapshot);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    Py_DECREF(name);
    return result < 0 ? binding_raise(result) : snapshot_object(self, &snapshot);
}

STORE_METHOD(binding_snapshot_get)
{
    static char *names[] = {"snapshot_id", NULL};
    struct store_snapshot snapshot;
    uint64_t snapshot_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:snapshot_get", names, binding_convert_u64,
                                     &snapshot_id)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_snapshot_get(self->store, snapshot_id, &snapshot);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return result < 0 ? binding_raise(result) : snapshot_object(self, &snapshot);
}

#define SNAPSHOT_BATCH 64u /* about 50 KiB of struct store_snapshot for each release of the GIL */

/* Fills the batch with snapshots after *cursor, or descending with those before it. 0, or a negative errno; fewer than
 * `wanted` mean the end. */
static int snapshots_fetch(struct store *store, uint64_t volume_id, uint64_t *cursor, bool descending,
                           struct store_snapshot *batch, size_t wanted, size_t *count)
{
    int result = 0;

    *count = 0;
    while (*count < wanted) {
        result = descending ? store_snapshot_previous(store, volume_id, *cursor, &batch[*count])
                            : store_snapshot_next(store, volume_id, *cursor, &batch[*count]);
        if (result < 0) {
            break;
        }
        *cursor = batch[*count].id;
        (*count)++;
    }
    return result == -ENOENT ? 0 : result;
}

STORE_METHOD(binding_snapshots)
{
    static char *names[] = {"volume_id", "after_id", "before_id", "limit", NULL};
    struct store_snapshot *batch = NULL;
    struct store_volume volume;
    PyObject *list = NULL;
    uint64_t volume_id = 0;
    uint64_t cursor = 0;
    uint64_t before_id = 0;
    uint64_t limit = 0;
    size_t wanted = SNAPSHOT_BATCH;
    size_t count = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&|$O&O&O&:snapshots", names, binding_convert_u64,
                                     &volume_id, binding_convert_u64, &cursor, binding_convert_u64, &before_id,
                                     binding_convert_u64, &limit)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    /* store_snapshot_next() says -ENOENT at the end; that there is no such volume has to be told apart. */
    result = store_volume_get(self->store, volume_id, &volume);
    Py_END_ALLOW_THREADS
    if (result < 0) {
        binding_raise(result);
        goto done;
    }
    if (before_id > 0) {
        cursor = before_id;
    }
    batch = malloc(SNAPSHOT_BATCH * sizeof(*batch));
    list = PyList_New(0);
    if (batch == NULL || list == NULL) {
        Py_CLEAR(list);
        PyErr_NoMemory();
        goto done;
    }
    do {
        uint64_t left = limit > 0 ? limit - (uint64_t)PyList_GET_SIZE(list) : SNAPSHOT_BATCH;

        wanted = left < SNAPSHOT_BATCH ? (size_t)left : SNAPSHOT_BATCH;
        Py_BEGIN_ALLOW_THREADS
        result = snapshots_fetch(self->store, volume_id, &cursor, before_id > 0, batch, wanted, &count);
        Py_END_ALLOW_THREADS
        if (result < 0) {
            Py_CLEAR(list);
            binding_raise(result);
            goto done;
        }
        for (size_t index = 0; index < count; index++) {
            PyObject *object = snapshot_object(self, &batch[index]);

            if (object == NULL || PyList_Append(list, object) != 0) {
                Py_XDECREF(object);
                Py_CLEAR(list);
                goto done;
            }
            Py_DECREF(object);
        }
    } while (wanted > 0 && count == wanted);
done:
    gate_leave(&self->gate);
    free(batch);
    return list;
}

STORE_METHOD(binding_snapshot_delete)
{
    static char *names[] = {"snapshot_id", NULL};
    return call_with_id(self, arguments, keywords, names, "O&:snapshot_delete", store_snapshot_delete);
}

STORE_METHOD(binding_snapshot_annotate)
{
    static char *names[] = {"snapshot_id", "hold_count", "annotation", NULL};
    uint64_t snapshot_id = 0;
    uint64_t hold_count = 0;
    const char *annotation = NULL;
    Py_ssize_t annotation_length = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&y#:snapshot_annotate", names, binding_convert_u64,
                                     &snapshot_id, binding_convert_u64, &hold_count, &annotation,
                                     &annotation_length)) {
        return NULL;
    }
    if (hold_count > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "hold_count is out of range");
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_snapshot_annotate(self->store, snapshot_id, (uint32_t)hold_count, annotation,
                                     (size_t)annotation_length);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return binding_none(result);
}

STORE_METHOD(binding_clone)
{
    static char *names[] = {"snapshot_id", "name", NULL};
    PyObject *name = NULL;
    uint64_t snapshot_id = 0;
    uint64_t volume_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:clone", names, binding_convert_u64, &snapshot_id,
                                     binding_convert_name, &name)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        Py_DECREF(name);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_clone(self->store, snapshot_id, PyBytes_AS_STRING(name), &volume_id);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    Py_DECREF(name);
    return result < 0 ? binding_raise(result) : PyLong_FromUnsignedLongLong(volume_id);
}

STORE_METHOD(binding_rollback)
{
    static char *names[] = {"volume_id", "snapshot_id", "guard_name", NULL};
    struct store_snapshot guard;
    PyObject *guard_name = NULL;
    uint64_t volume_id = 0;
    uint64_t snapshot_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&O&:rollback", names, binding_convert_u64, &volume_id,
                                     binding_convert_u64, &snapshot_id, binding_convert_name, &guard_name)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        Py_DECREF(guard_name);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_rollback(self->store, volume_id, snapshot_id, PyBytes_AS_STRING(guard_name), &guard);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    Py_DECREF(guard_name);
    return result < 0 ? binding_raise(result) : snapshot_object(self, &guard);
}
