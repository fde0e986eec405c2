/* Store's methods that move through history. */
#include "binding.h"

#include <errno.h>

typedef int (*travel_call)(struct store *store, uint64_t object_id, uint64_t value, uint64_t *id);

/* An id found by an object and a number, or None. */
static PyObject *travel(struct store_object *self, PyObject *arguments, PyObject *keywords, char **names,
                        const char *format, travel_call call)
{
    uint64_t object_id = 0;
    uint64_t value = 0;
    uint64_t id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, format, names, binding_convert_u64, &object_id,
                                     binding_convert_u64, &value)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = call(self->store, object_id, value, &id);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    if (result == -ENOENT) {
        Py_RETURN_NONE;
    }
    return result < 0 ? binding_raise(result) : PyLong_FromUnsignedLongLong(id);
}

STORE_METHOD(binding_snapshot_at)
{
    static char *names[] = {"volume_id", "time_ns", NULL};
    return travel(self, arguments, keywords, names, "O&O&:snapshot_at", store_snapshot_at);
}

static int id_before(struct store *store, uint64_t volume_id, uint64_t before_id, uint64_t *id)
{
    struct store_snapshot found;
    int result = store_snapshot_previous(store, volume_id, before_id, &found);
    if (result == 0) {
        *id = found.id;
    }
    return result;
}

STORE_METHOD(binding_snapshot_before)
{
    static char *names[] = {"volume_id", "before_id", NULL};
    return travel(self, arguments, keywords, names, "O&O&:snapshot_before", id_before);
}

STORE_METHOD(binding_snapshot_since)
{
    static char *names[] = {"object_id", "epoch", NULL};
    return travel(self, arguments, keywords, names, "O&O&:snapshot_since", store_snapshot_since);
}

STORE_METHOD(binding_promote)
{
    static char *names[] = {"volume_id", NULL};
    uint64_t volume_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:promote", names, binding_convert_u64, &volume_id)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_promote(self->store, volume_id);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    return binding_none(result);
}

STORE_METHOD(binding_heads)
{
    static char *names[] = {"volume_id", NULL};
    struct store_head head = {0};
    PyObject *list;
    uint64_t volume_id = 0;
    int result = 0;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:heads", names, binding_convert_u64, &volume_id)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    list = PyList_New(0);
    while (list != NULL) {
        PyObject *object;

        Py_BEGIN_ALLOW_THREADS
        result = store_head_next(self->store, volume_id, head.id, &head);
        Py_END_ALLOW_THREADS
        if (result < 0) {
            break;
        }
        object = Py_BuildValue("(KKK)", (unsigned long long)head.id, (unsigned long long)head.origin_snapshot_id,
                               (unsigned long long)head.guard_snapshot_id);
        if (object == NULL || PyList_Append(list, object) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(object);
    }
    gate_leave(&self->gate);
    return list;
}
