/* The Python type Storage. */
#include "binding.h"

#include <errno.h>
#include <string.h>

/* ---- proxy --------------------------------------------------------------------------------------------------- */

static int proxy_read(struct storage *storage, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct storage *target = ((struct storage_proxy *)storage)->target;

    return target->operations->read(target, buffer, length_bytes, offset_bytes);
}

static int proxy_write(struct storage *storage, const void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct storage *target = ((struct storage_proxy *)storage)->target;

    return target->operations->write(target, buffer, length_bytes, offset_bytes);
}

static int proxy_flush(struct storage *storage)
{
    struct storage *target = ((struct storage_proxy *)storage)->target;

    return target->operations->flush(target);
}

static uint64_t proxy_size(struct storage *storage)
{
    struct storage *target = ((struct storage_proxy *)storage)->target;

    return target->operations->size(target);
}

static void proxy_close(struct storage *storage)
{
    (void)storage; /* the Python object closes: storage_object_detach() */
}

static const struct storage_operations proxy_operations = {
    .read = proxy_read,
    .write = proxy_write,
    .flush = proxy_flush,
    .size = proxy_size,
    .close = proxy_close,
};

/* ---- life ---------------------------------------------------------------------------------------------------- */

/* An object around an open storage, which it owns from now on, also when this fails. */
static struct storage_object *storage_object_new(PyTypeObject *type, struct storage *storage)
{
    struct storage_object *object = (struct storage_object *)type->tp_alloc(type, 0);
    int result;

    if (object == NULL) {
        storage->operations->close(storage);
        return NULL;
    }
    result = gate_init(&object->gate);
    if (result != 0) {
        storage->operations->close(storage);
        type->tp_free(object);
        Py_DECREF(type);
        binding_raise(result);
        return NULL;
    }
    object->storage = storage;
    object->proxy.base.operations = &proxy_operations;
    object->proxy.target = storage;
    gate_open(&object->gate);
    return object;
}

/* Closes it once; waits for calls in progress. Needs the GIL. */
static void storage_object_close(struct storage_object *object)
{
    bool mine;

    Py_BEGIN_ALLOW_THREADS
    mine = gate_close(&object->gate);
    if (mine) {
        object->storage->operations->close(object->storage);
        object->storage = NULL;
        object->proxy.target = NULL;
        gate_shut(&object->gate);
    }
    Py_END_ALLOW_THREADS
    if (mine && object->inner != NULL) {
        storage_object_detach(object->inner, false);
        Py_CLEAR(object->inner);
    }
}

bool storage_object_attach(struct storage_object *object)
{
    if (!gate_enter(&object->gate, "Storage")) {
        return false;
    }
    gate_leave(&object->gate);
    if (object->attached) {
        PyErr_SetString(PyExc_ValueError, "Storage is in use by a Store or a recorder");
        return false;
    }
    object->attached = true;
    return true;
}

void storage_object_detach(struct storage_object *object, bool keep)
{
    object->attached = false;
    if (!keep && !object->volatile_medium) {
        storage_object_close(object);
    }
}

static void storage_dealloc(struct storage_object *self)
{
    PyTypeObject *type = Py_TYPE(self);

    storage_object_close(self);
    gate_destroy(&self->gate);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- opening ------------------------------------------------------------------------------------------------- */

static PyObject *storage_py_open_file(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"path", "read_only", NULL};
    PyObject *path = NULL;
    int read_only = 0;
    struct storage *storage = NULL;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&|$p:open_file", names, PyUnicode_FSConverter, &path,
                                     &read_only)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = storage_open_file(PyBytes_AS_STRING(path), read_only != 0, &storage);
    Py_END_ALLOW_THREADS
    if (result != 0) {
        errno = -result;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(path));
    }
    Py_DECREF(path);
    return result == 0 ? (PyObject *)storage_object_new(type, storage) : NULL;
}

static PyObject *storage_py_open_memory(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"size_bytes", NULL};
    uint64_t size_bytes = 0;
    struct storage *storage = NULL;
    struct storage_object *object;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:open_memory", names, binding_convert_u64,
                                     &size_bytes)) {
        return NULL;
    }
    result = storage_open_memory(size_bytes, &storage);
    if (result != 0) {
        return binding_raise(result);
    }
    object = storage_object_new(type, storage);
    if (object != NULL) {
        object->volatile_medium = true;
    }
    return (PyObject *)object;
}

static PyObject *storage_py_open_recorder(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"inner", "record", NULL};
    struct module_state *state = binding_state(type);
    struct storage_object *inner = NULL;
    struct storage_object *object = NULL;
    struct storage *storage = NULL;
    int record = 1;
    int result;

    if (state == NULL
        || !PyArg_ParseTupleAndKeywords(arguments, keywords, "O!|$p:open_recorder", names, state->storage_type,
                                        &inner, &record)) {
        return NULL;
    }
    if (!storage_object_attach(inner)) {
        return NULL;
    }
    result = storage_open_recorder(&inner->proxy.base, record != 0, &storage);
    if (result != 0) {
        binding_raise(result);
    } else {
        object = storage_object_new(type, storage);
    }
    if (object == NULL) {
        storage_object_detach(inner, true);
        return NULL;
    }
    object->volatile_medium = inner->volatile_medium;
    object->inner = (struct storage_object *)Py_NewRef(inner);
    return (PyObject *)object;
}

/* ---- operations ---------------------------------------------------------------------------------------------- */

static PyObject *storage_py_read(struct storage_object *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"offset_bytes", "length_bytes", NULL};
    uint64_t offset_bytes = 0;
    uint64_t length_bytes = 0;
    PyObject *bytes = NULL;
    int result = -EIO;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:read", names, binding_convert_u64, &offset_bytes,
                                     binding_convert_u64, &length_bytes)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Storage")) {
        return NULL;
    }
    if (length_bytes <= self->storage->operations->size(self->storage) && length_bytes <= PY_SSIZE_T_MAX) {
        bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length_bytes);
        if (bytes == NULL) {
            gate_leave(&self->gate);
            return NULL;
        }
        Py_BEGIN_ALLOW_THREADS
        result = self->storage->operations->read(self->storage, PyBytes_AS_STRING(bytes), (size_t)length_bytes,
                                                 offset_bytes);
        Py_END_ALLOW_THREADS
    }
    gate_leave(&self->gate);
    if (result != 0) {
        Py_XDECREF(bytes);
        return binding_raise(result);
    }
    return bytes;
}

static PyObject *storage_py_write(struct storage_object *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"offset_bytes", "data", NULL};
    uint64_t offset_bytes = 0;
    Py_buffer data;
    int result = 0;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y*:write", names, binding_convert_u64, &offset_bytes,
                                     &data)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Storage")) {
        PyBuffer_Release(&data);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = self->storage->operations->write(self->storage, data.buf, (size_t)data.len, offset_bytes);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    PyBuffer_Release(&data);
    return binding_none(result);
}

static PyObject *storage_py_flush(struct storage_object *self, PyObject *Py_UNUSED(unused))
{
    int result;

    if (!gate_enter(&self->gate, "Storage")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = self->storage->operations->flush(self->storage);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return binding_none(result);
}

static PyObject *storage_py_size(struct storage_object *self, PyObject *Py_UNUSED(unused))
{
    uint64_t size_bytes;

    if (!gate_enter(&self->gate, "Storage")) {
        return NULL;
    }
    size_bytes = self->storage->operations->size(self->storage);
    gate_leave(&self->gate);
    return PyLong_FromUnsignedLongLong(size_bytes);
}

static PyObject *storage_py_close(struct storage_object *self, PyObject *Py_UNUSED(unused))
{
    if (self->attached) {
        PyErr_SetString(PyExc_ValueError, "Storage is in use by a Store or a recorder");
        return NULL;
    }
    storage_object_close(self);
    Py_RETURN_NONE;
}

/* ---- recorder ------------------------------------------------------------------------------------------------ */

/* Passes the gate if this is a recorder; ValueError otherwise. */
static bool recorder_enter(struct storage_object *self)
{
    if (!gate_enter(&self->gate, "Storage")) {
        return false;
    }
    if (!storage_is_recorder(self->storage)) {
        gate_leave(&self->gate);
        PyErr_SetString(PyExc_ValueError, "Storage is not a recorder");
        return false;
    }
    return true;
}

/* "read|write|flush" as a mask; 0 with ValueError for other words. */
static unsigned parse_fault_kinds(const char *kinds)
{
    static const struct {
        const char *word;
        unsigned kind;
    } words[] = {{"read", STORAGE_FAULT_READ}, {"write", STORAGE_FAULT_WRITE}, {"flush", STORAGE_FAULT_FLUSH}};
    const char *rest = kinds;
    unsigned mask = 0;

    for (;;) {
        size_t length = strcspn(rest, "|");
        unsigned kind = 0;

        for (size_t index = 0; index < sizeof(words) / sizeof(words[0]); index++) {
            if (strlen(words[index].word) == length && strncmp(rest, words[index].word, length) == 0) {
                kind = words[index].kind;
            }
        }
        if (kind == 0) {
            PyErr_Format(PyExc_ValueError, "kinds must be 'read', 'write', 'flush' joined by '|', not '%.100s'",
                         kinds);
            return 0;
        }
        mask |= kind;
        if (rest[length] == '\0') {
            return mask;
        }
        rest += length + 1;
    }
}

static PyObject *storage_py_fail(struct storage_object *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"kinds", "index", "error", "forever", NULL};
    const char *kinds = NULL;
    long long index = 0;
    int error = 0;
    int forever = 0;
    unsigned mask;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "sLi|$p:fail", names, &kinds, &index, &error, &forever)) {
        return NULL;
    }
    mask = parse_fault_kinds(kinds);
    if (mask == 0) {
        return NULL;
    }
    if (index >= 0 && error <= 0) {
        PyErr_SetString(PyExc_ValueError, "error must be a positive errno");
        return NULL;
    }
    if (!recorder_enter(self)) {
        return NULL;
    }
    storage_recorder_fail(self->storage, mask, index, error, forever != 0);
    gate_leave(&self->gate);
    Py_RETURN_NONE;
}

static PyObject *storage_py_events(struct storage_object *self, PyObject *Py_UNUSED(unused))
{
    struct module_state *state = binding_state(Py_TYPE(self));
    PyObject *list = NULL;
    size_t count;

    if (state == NULL || !recorder_enter(self)) {
        return NULL;
    }
    count = storage_recorder_event_count(self->storage);
    list = PyList_New((Py_ssize_t)count);
    for (size_t index = 0; list != NULL && index < count; index++) {
        const struct storage_event *event = storage_recorder_event(self->storage, index);
        bool is_write = event->kind == STORAGE_EVENT_WRITE;
        PyObject *object = PyObject_CallFunction(state->storage_event, "sKy#", is_write ? "write" : "flush",
                                                 (unsigned long long)event->offset_bytes,
                                                 is_write ? (const char *)event->bytes : "",
                                                 (Py_ssize_t)event->length_bytes);

        if (object == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t)index, object);
        }
    }
    gate_leave(&self->gate);
    return list;
}

static PyObject *storage_py_counts(struct storage_object *self, PyObject *Py_UNUSED(unused))
{
    uint64_t reads;
    uint64_t writes;
    uint64_t flushes;

    if (!recorder_enter(self)) {
        return NULL;
    }
    storage_recorder_counts(self->storage, &reads, &writes, &flushes);
    gate_leave(&self->gate);
    return Py_BuildValue("KKK", (unsigned long long)reads, (unsigned long long)writes, (unsigned long long)flushes);
}

#define METHOD(name, function, flags, signature) {name, (PyCFunction)(void (*)(void))(function), flags, signature}
#define WITH_KEYWORDS (METH_VARARGS | METH_KEYWORDS)

static PyMethodDef storage_methods[] = {
    METHOD("open_file", storage_py_open_file, WITH_KEYWORDS | METH_CLASS,
           "open_file($type, /, path, *, read_only=False)\n--\n\nA regular file or block device, locked. EBUSY."),
    METHOD("open_memory", storage_py_open_memory, WITH_KEYWORDS | METH_CLASS,
           "open_memory($type, /, size_bytes)\n--\n\nZero-filled memory."),
    METHOD("open_recorder", storage_py_open_recorder, WITH_KEYWORDS | METH_CLASS,
           "open_recorder($type, /, inner, *, record=True)\n--\n\nTest double over `inner`, which it takes over."),
    METHOD("read", storage_py_read, WITH_KEYWORDS,
           "read($self, /, offset_bytes, length_bytes)\n--\n\nAll of the bytes; EIO past the end."),
    METHOD("write", storage_py_write, WITH_KEYWORDS,
           "write($self, /, offset_bytes, data)\n--\n\nAll of the bytes; EIO past the end."),
    METHOD("flush", storage_py_flush, METH_NOARGS, "flush($self, /)\n--\n\nMakes what was written durable."),
    METHOD("size", storage_py_size, METH_NOARGS, "size($self, /)\n--\n\nBytes."),
    METHOD("close", storage_py_close, METH_NOARGS, "close($self, /)\n--\n\nReleases it; ValueError while in use."),
    METHOD("fail", storage_py_fail, WITH_KEYWORDS,
           "fail($self, /, kinds, index, error, *, forever=False)\n--\n\nArms one fault of a recorder."),
    METHOD("events", storage_py_events, METH_NOARGS, "events($self, /)\n--\n\nWhat a recorder recorded, in order."),
    METHOD("counts", storage_py_counts, METH_NOARGS,
           "counts($self, /)\n--\n\n(reads, writes, flushes) a recorder was asked for, failed ones included."),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot storage_slots[] = {
    {Py_tp_doc, "Where a pool lives. Opened by one of the open_ methods; a Store or a recorder takes it over."},
    {Py_tp_dealloc, storage_dealloc},
    {Py_tp_methods, storage_methods},
    {0, NULL},
};

PyType_Spec binding_storage_spec = {
    .name = "btree._store.Storage",
    .basicsize = sizeof(struct storage_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = storage_slots,
};
