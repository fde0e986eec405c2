/* The type Pump: the pump's life and figures. No thread of the pump comes here. */
#include "binding_pump.h"
#include "pump_protocol.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

struct pump_object {
    PyObject_HEAD struct pump *pump;
    PyObject *file_system; /* kept alive */
    char reason[128];
};

static PyObject *pump_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"filesystem", "device", "forward",   "reserved",       "uring",
                            "threads",    "awake",  "writeback", "honours_setuid", "mountpoint", NULL};
    PyObject *file_system;
    struct bytes_argument reserved, mountpoint = {0};
    struct pump_options options = {.threads = 2};
    int uring = 0, awake = 0, writeback = 0, honours_setuid = 0, status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "Oiiy#|$pO&pppz#:Pump", names, &file_system, &options.device,
                                     &options.forward, &reserved.bytes, &reserved.length, &uring, binding_convert_u32,
                                     &options.threads, &awake, &writeback, &honours_setuid,
                                     &mountpoint.bytes, &mountpoint.length))
        return NULL;
    struct file_system_object *inner = binding_file_system(file_system);
    if (inner == NULL)
        return NULL;
    struct pump_object *self = (struct pump_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->file_system = Py_NewRef(file_system);
    options.uring = uring != 0;
    options.awake = awake != 0;
    options.writeback = writeback != 0;
    options.honours_setuid = honours_setuid != 0;
    options.reserved = reserved.bytes;
    options.mountpoint = mountpoint.bytes;
    Py_BEGIN_ALLOW_THREADS status = pump_create(inner->filesystem, &options, &self->pump, self->reason);
    Py_END_ALLOW_THREADS if (status != 0)
    {
        self->pump = NULL;
        Py_DECREF(self);
        return binding_raise(status);
    }
    return (PyObject *)self;
}

static void pump_dealloc(struct pump_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->pump != NULL) {
        Py_BEGIN_ALLOW_THREADS pump_stop(self->pump);
        Py_END_ALLOW_THREADS pump_destroy(self->pump);
    }
    Py_XDECREF(self->file_system);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *pump_start_method(struct pump_object *self, PyObject *Py_UNUSED(ignored))
{
    int status;
    Py_BEGIN_ALLOW_THREADS status = pump_start(self->pump);
    Py_END_ALLOW_THREADS return binding_none(status);
}

static PyObject *pump_stop_method(struct pump_object *self, PyObject *Py_UNUSED(ignored))
{
    Py_BEGIN_ALLOW_THREADS pump_stop(self->pump);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyObject *pump_flush_method(struct pump_object *self, PyObject *Py_UNUSED(ignored))
{
    int status;
    Py_BEGIN_ALLOW_THREADS status = pump_flush(self->pump);
    Py_END_ALLOW_THREADS return binding_none(status);
}

static PyObject *pump_next_event(struct pump_object *self, PyObject *Py_UNUSED(ignored))
{
    struct pump_event event;
    ssize_t length = read(pump_event_descriptor(self->pump), &event, sizeof event);
    if (length < 0 && errno != EAGAIN && errno != EINTR)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (length != sizeof event)
        Py_RETURN_NONE;
    const char *name = pump_opcode_name(event.opcode);
    return Py_BuildValue("(IsKi)", event.kind, name == NULL ? "" : name, (unsigned long long)event.node, event.error);
}

/* (count, total_ns, (upper bound in ns, count) of each class that is not empty), or NULL with an exception. */
static PyObject *latency_tuple(const struct pump_latency *latency)
{
    PyObject *classes = PyList_New(0);
    for (uint32_t at = 0; classes != NULL && at < PUMP_LATENCY_CLASSES; at++) {
        if (latency->classes[at] == 0)
            continue;
        PyObject *pair = Py_BuildValue("(KK)", (unsigned long long)pump_latency_class_ns(at),
                                       (unsigned long long)latency->classes[at]);
        if (pair == NULL || PyList_Append(classes, pair) != 0)
            Py_CLEAR(classes);
        Py_XDECREF(pair);
    }
    if (classes == NULL)
        return NULL;
    return Py_BuildValue("(KKN)", (unsigned long long)latency->count, (unsigned long long)latency->total_ns, classes);
}

static PyObject *pump_latencies(struct pump_object *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *list = PyList_New(0);
    for (uint32_t which = 0; list != NULL && which < 2 * PUMP_OPCODE_COUNT; which++) {
        uint32_t opcode = which / 2;
        bool forwarded = which % 2 != 0;
        const char *name = pump_opcode_name(opcode);
        struct pump_latency latency;
        pump_latency(self->pump, opcode, forwarded, &latency);
        if (name == NULL || latency.count == 0)
            continue;
        PyObject *tuple = latency_tuple(&latency);
        PyObject *item = tuple == NULL ? NULL : Py_BuildValue("(sNN)", name, PyBool_FromLong(forwarded), tuple);
        if (item == NULL || PyList_Append(list, item) != 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *pump_get(struct pump_object *self, void *which)
{
    switch ((char)(uintptr_t)which) {
    case 'u':
        return PyBool_FromLong(pump_uses_uring(self->pump));
    case 'r':
        return PyUnicode_FromString(self->reason);
    case 'o':
        return PyLong_FromUnsignedLongLong(pump_open_files(self->pump));
    case 'e':
        return PyLong_FromLong(pump_event_descriptor(self->pump));
    default:
        return PyLong_FromUnsignedLong(pump_protocol_minor(self->pump));
    }
}

static PyMethodDef pump_methods[] = {
    {"start", (PyCFunction)(void (*)(void))pump_start_method, METH_NOARGS,
     "start($self, /)\n--\n\nStarts the threads: requests are answered from now on."},
    {"stop", (PyCFunction)(void (*)(void))pump_stop_method, METH_NOARGS,
     "stop($self, /)\n--\n\nEnds the threads when what they are doing is done."},
    {"flush", (PyCFunction)(void (*)(void))pump_flush_method, METH_NOARGS,
     "flush($self, /)\n--\n\nWaits until what programs have written has come here from the kernel's cache."},
    {"next_event", (PyCFunction)(void (*)(void))pump_next_event, METH_NOARGS,
     "next_event($self, /)\n--\n\n(kind, opcode name, node, errno), or None when there is none."},
    {"latencies", (PyCFunction)(void (*)(void))pump_latencies, METH_NOARGS,
     "latencies($self, /)\n--\n\n(opcode name, forwarded, (count, total_ns, classes)) of each that came."},
    {0},
};

static PyGetSetDef pump_properties[] = {
    {"uses_uring", (getter)pump_get, NULL, "Whether requests come over io_uring.", (void *)(uintptr_t)'u'},
    {"reason", (getter)pump_get, NULL, "Why io_uring was wanted and is not used.", (void *)(uintptr_t)'r'},
    {"open_files", (getter)pump_get, NULL, "Files opened and not yet released.", (void *)(uintptr_t)'o'},
    {"event_descriptor", (getter)pump_get, NULL, "Readable when there is an event.", (void *)(uintptr_t)'e'},
    {"protocol_minor", (getter)pump_get, NULL, "Minor version of the protocol agreed on.", (void *)(uintptr_t)'m'},
    {0},
};

static PyType_Slot pump_slots[] = {
    {Py_tp_doc, "Pump(filesystem, device, forward, reserved, *, uring=False, threads=2, awake=False, writeback=False, "
                "honours_setuid=False, mountpoint=None)\n--\n\n"
                "Answers the kernel's INIT; what C does not answer goes over `forward`."},
    {Py_tp_new, pump_new},
    {Py_tp_dealloc, pump_dealloc},
    {Py_tp_methods, pump_methods},
    {Py_tp_getset, pump_properties},
    {0, NULL},
};

static PyType_Spec pump_spec = {
    .name = "cowfs._native.Pump",
    .basicsize = sizeof(struct pump_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pump_slots,
};

int binding_pump_add(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &pump_spec, NULL);
    if (type == NULL)
        return -1;
    int status = PyModule_AddObjectRef(module, "Pump", type);
    Py_DECREF(type);
    if (status == 0)
        status = PyModule_AddIntConstant(module, "PUMP_EVENT_ENDED", PUMP_EVENT_ENDED);
    if (status == 0)
        status = PyModule_AddIntConstant(module, "PUMP_EVENT_FAILED", PUMP_EVENT_FAILED);
    if (status == 0)
        status = PyModule_AddIntConstant(module, "PUMP_EVENT_ERROR", PUMP_EVENT_ERROR);
    return status;
}
