/* Store's methods on properties of volumes. */
#include "binding.h"

#include <errno.h>

STORE_METHOD(binding_property_set)
{
    static char *names[] = {"volume_id", "name", "value", NULL};
    PyObject *name = NULL;
    uint64_t volume_id = 0;
    const char *value = NULL;
    Py_ssize_t length = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&y#:property_set", names, binding_convert_u64, &volume_id,
                                     binding_convert_name, &name, &value, &length)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        Py_DECREF(name);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_volume_property_set(self->store, volume_id, PyBytes_AS_STRING(name), value, (size_t)length);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    Py_DECREF(name);
    return binding_none(result);
}

STORE_METHOD(binding_property_get)
{
    static char *names[] = {"volume_id", "name", NULL};
    struct store_property property;
    PyObject *name = NULL;
    uint64_t volume_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:property_get", names, binding_convert_u64, &volume_id,
                                     binding_convert_name, &name)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        Py_DECREF(name);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_volume_property_get(self->store, volume_id, PyBytes_AS_STRING(name), &property);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    Py_DECREF(name);
    if (result == -ENODATA) {
        Py_RETURN_NONE;
    }
    return result < 0 ? binding_raise(result)
                      : PyBytes_FromStringAndSize((const char *)property.value, property.length);
}

/* False with an exception set. */
static bool add_property(PyObject *properties, const struct store_property *property)
{
    PyObject *name = binding_name(property->name);
    PyObject *value = PyBytes_FromStringAndSize((const char *)property->value, property->length);
    bool added = name != NULL && value != NULL && PyDict_SetItem(properties, name, value) == 0;

    Py_XDECREF(name);
    Py_XDECREF(value);
    return added;
}

STORE_METHOD(binding_properties)
{
    static char *names[] = {"volume_id", NULL};
    struct store_property property = {0};
    PyObject *properties;
    uint64_t volume_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:properties", names, binding_convert_u64, &volume_id)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    properties = PyDict_New();
    while (properties != NULL) {
        char after[sizeof property.name];

        memcpy(after, property.name, sizeof after);
        Py_BEGIN_ALLOW_THREADS
        result = store_volume_property_next(self->store, volume_id, after, &property);
        Py_END_ALLOW_THREADS
        if (result == -ENODATA) {
            break;
        }
        if (result < 0) {
            binding_raise(result);
        }
        if (result < 0 || !add_property(properties, &property)) {
            Py_CLEAR(properties);
        }
    }
    gate_leave(&self->gate);
    return properties;
}
