/* The module `btree._store`: its state, errors, and what the types in the other binding files share. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- errors and converters ----------------------------------------------------------------------------------- */

struct module_state *binding_state(PyTypeObject *type)
{
    PyObject *module = PyType_GetModuleByDef(type, &binding_module);

    return module != NULL ? PyModule_GetState(module) : NULL;
}

PyObject *binding_raise(int result)
{
    errno = -result;
    return PyErr_SetFromErrno(PyExc_OSError);
}

PyObject *binding_none(int result)
{
    if (result < 0) {
        return binding_raise(result);
    }
    Py_RETURN_NONE;
}

PyObject *binding_raise_failure(struct module_state *state, int result, const struct store_failure *failure)
{
    const char *text = failure->message[0] != '\0' ? failure->message : strerror(-result);
    PyObject *message = PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "backslashreplace");
    PyObject *error = NULL;

    if (message != NULL) {
        error = PyObject_CallFunction(state->store_error, "iN", -result, message);
    }
    if (error != NULL) {
        PyErr_SetObject(state->store_error, error);
        Py_DECREF(error);
    }
    return NULL;
}

int binding_convert_u64(PyObject *object, void *out)
{
    unsigned long long value;
    PyObject *number = PyNumber_Index(object);

    if (number == NULL) {
        return 0;
    }
    value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (value == (unsigned long long)-1 && PyErr_Occurred() != NULL) {
        return 0;
    }
    *(uint64_t *)out = value;
    return 1;
}

int binding_convert_name(PyObject *object, void *out)
{
    PyObject **name = out;
    PyObject *encoded;

    if (object == NULL) { /* cleanup after a later argument failed */
        Py_CLEAR(*name);
        return 1;
    }
    if (!PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError, "a name must be str, not %.100s", Py_TYPE(object)->tp_name);
        return 0;
    }
    encoded = PyUnicode_AsEncodedString(object, "utf-8", "surrogateescape");
    if (encoded == NULL) {
        return 0;
    }
    if (strlen(PyBytes_AS_STRING(encoded)) != (size_t)PyBytes_GET_SIZE(encoded)) {
        Py_DECREF(encoded);
        binding_raise(-EINVAL);
        return 0;
    }
    *name = encoded;
    return Py_CLEANUP_SUPPORTED;
}

PyObject *binding_name(const char *name)
{
    return PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "surrogateescape");
}

/* ---- gate ---------------------------------------------------------------------------------------------------- */

int gate_init(struct gate *gate)
{
    int result = -pthread_mutex_init(&gate->mutex, NULL);

    if (result != 0) {
        return result;
    }
    result = -pthread_cond_init(&gate->changed, NULL);
    if (result != 0) {
        pthread_mutex_destroy(&gate->mutex);
        return result;
    }
    gate->users = 0;
    gate->state = GATE_SHUT;
    return 0;
}

void gate_destroy(struct gate *gate)
{
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->mutex);
}

void gate_open(struct gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    gate->state = GATE_OPEN;
    pthread_mutex_unlock(&gate->mutex);
}

bool gate_enter(struct gate *gate, const char *what)
{
    bool open;

    pthread_mutex_lock(&gate->mutex);
    open = gate->state == GATE_OPEN;
    if (open) {
        gate->users++;
    }
    pthread_mutex_unlock(&gate->mutex);
    if (!open) {
        PyErr_Format(PyExc_ValueError, "%s is closed", what);
    }
    return open;
}

void gate_leave(struct gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    gate->users--;
    if (gate->users == 0 && gate->state == GATE_CLOSING) {
        pthread_cond_broadcast(&gate->changed);
    }
    pthread_mutex_unlock(&gate->mutex);
}

bool gate_close(struct gate *gate)
{
    bool mine = false;

    pthread_mutex_lock(&gate->mutex);
    while (gate->state == GATE_CLOSING) {
        pthread_cond_wait(&gate->changed, &gate->mutex);
    }
    if (gate->state == GATE_OPEN) {
        gate->state = GATE_CLOSING;
        mine = true;
        while (gate->users > 0) {
            pthread_cond_wait(&gate->changed, &gate->mutex);
        }
    }
    pthread_mutex_unlock(&gate->mutex);
    return mine;
}

void gate_shut(struct gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    gate->state = GATE_SHUT;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

/* ---- records ------------------------------------------------------------------------------------------------- */

/* Makes room for `wanted` elements, doubling. 0 or -ENOMEM. */
static int grow(void **memory, size_t *capacity, size_t wanted, size_t element_size)
{
    size_t new_capacity = *capacity > 0 ? *capacity : 64;
    void *grown;

    if (wanted <= *capacity) {
        return 0;
    }
    while (new_capacity < wanted) {
        if (new_capacity > SIZE_MAX / 2 / element_size) {
            return -ENOMEM;
        }
        new_capacity *= 2;
    }
    grown = realloc(*memory, new_capacity * element_size);
    if (grown == NULL) {
        return -ENOMEM;
    }
    *memory = grown;
    *capacity = new_capacity;
    return 0;
}

int records_append(struct record_list *list, const struct record_part parts[RECORD_PARTS])
{
    struct record record = {.offset = list->bytes_used};
    size_t total = 0;
    int result;

    for (unsigned part = 0; part < RECORD_PARTS; part++) {
        if (parts[part].bytes != NULL && parts[part].length >= RECORD_ABSENT) {
            return -ENOMEM;
        }
        record.lengths[part] = parts[part].bytes != NULL ? (uint32_t)parts[part].length : RECORD_ABSENT;
        total += parts[part].bytes != NULL ? parts[part].length : 0;
    }
    result = grow((void **)&list->records, &list->capacity, list->count + 1, sizeof(*list->records));
    if (result != 0) {
        return result;
    }
    result = grow((void **)&list->bytes, &list->bytes_capacity, list->bytes_used + total, 1);
    if (result != 0) {
        return result;
    }
    for (unsigned part = 0; part < RECORD_PARTS; part++) {
        if (parts[part].bytes != NULL && parts[part].length > 0) {
            memcpy(list->bytes + list->bytes_used, parts[part].bytes, parts[part].length);
            list->bytes_used += parts[part].length;
        }
    }
    list->records[list->count++] = record;
    return 0;
}

void records_truncate(struct record_list *list, size_t count)
{
    if (count < list->count) {
        list->bytes_used = list->records[count].offset;
        list->count = count;
    }
}

void records_free(struct record_list *list)
{
    free(list->bytes);
    free(list->records);
    memset(list, 0, sizeof(*list));
}

const uint8_t *record_part(const struct record_list *list, size_t index, unsigned part)
{
    const struct record *record = &list->records[index];
    size_t offset = record->offset;

    for (unsigned before = 0; before < part; before++) {
        offset += record->lengths[before] != RECORD_ABSENT ? record->lengths[before] : 0;
    }
    return list->bytes + offset;
}

PyObject *record_object(const struct record_list *list, size_t index, unsigned part)
{
    uint32_t length = list->records[index].lengths[part];

    if (length == RECORD_ABSENT) {
        Py_RETURN_NONE;
    }
    return PyBytes_FromStringAndSize((const char *)record_part(list, index, part), length);
}

PyObject *records_object(const struct record_list *list, unsigned part_count)
{
    PyObject *result = PyList_New((Py_ssize_t)list->count);

    if (result == NULL) {
        return NULL;
    }
    for (size_t index = 0; index < list->count; index++) {
        PyObject *tuple = PyTuple_New((Py_ssize_t)part_count);

        if (tuple == NULL) {
            goto failed;
        }
        PyList_SET_ITEM(result, (Py_ssize_t)index, tuple);
        for (unsigned part = 0; part < part_count; part++) {
            PyObject *value = record_object(list, index, part);

            if (value == NULL) {
                goto failed;
            }
            PyTuple_SET_ITEM(tuple, (Py_ssize_t)part, value);
        }
    }
    return result;
failed:
    Py_DECREF(result);
    return NULL;
}

/* ---- module -------------------------------------------------------------------------------------------------- */

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **out)
{
    *out = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *out != NULL ? PyModule_AddType(module, *out) : -1;
}

static int add_record(PyObject *module, PyObject *records, const char *name, PyObject **out)
{
    *out = PyObject_GetAttrString(records, name);
    return *out != NULL ? PyModule_AddObjectRef(module, name, *out) : -1;
}

static int module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    PyObject *records = NULL;
    int result = -1;

    state->store_error = PyErr_NewExceptionWithDoc(
        "btree.StoreError", "Opening or formatting failed; strerror says what is wrong and what to do next.",
        PyExc_OSError, NULL);
    if (state->store_error == NULL || PyModule_AddObjectRef(module, "StoreError", state->store_error) != 0) {
        goto done;
    }
    records = PyImport_ImportModule("btree.records");
    if (records == NULL) {
        goto done;
    }
    if (add_record(module, records, "VolumeInfo", &state->volume_info) != 0
        || add_record(module, records, "SnapshotInfo", &state->snapshot_info) != 0
        || add_record(module, records, "StorageEvent", &state->storage_event) != 0
        || add_type(module, &binding_storage_spec, &state->storage_type) != 0
        || add_type(module, &binding_store_spec, &state->store_type) != 0) {
        goto done;
    }
    result = 0;
done:
    Py_XDECREF(records);
    return result;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);

    Py_VISIT(state->storage_type);
    Py_VISIT(state->store_type);
    Py_VISIT(state->store_error);
    Py_VISIT(state->volume_info);
    Py_VISIT(state->snapshot_info);
    Py_VISIT(state->storage_event);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);

    Py_CLEAR(state->storage_type);
    Py_CLEAR(state->store_type);
    Py_CLEAR(state->store_error);
    Py_CLEAR(state->volume_info);
    Py_CLEAR(state->snapshot_info);
    Py_CLEAR(state->storage_event);
    return 0;
}

static void module_free(void *module)
{
    (void)module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

struct PyModuleDef binding_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "btree._store",
    .m_doc = "An embedded, ordered, copy-on-write key/value store with snapshots and writable clones.",
    .m_size = sizeof(struct module_state),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__store(void)
{
    return PyModuleDef_Init(&binding_module);
}
