/* Store's method that tells what may have stopped requests. */
#include "binding.h"

typedef unsigned long long wide;

static const char *const hold_names[STORE_HOLD_KINDS] = {
    [STORE_HOLD_FREEZE] = "freeze",   [STORE_HOLD_ENTER] = "enter",     [STORE_HOLD_RESOLVE] = "resolve",
    [STORE_HOLD_FINISH] = "finish",   [STORE_HOLD_RELEASE] = "release", [STORE_HOLD_BITMAP] = "bitmap",
    [STORE_HOLD_DELETE] = "delete",   [STORE_HOLD_SUM] = "sum",         [STORE_HOLD_SEGMENTS] = "segments",
};
static const char *const wait_names[STORE_WAIT_KINDS] = {
    [STORE_WAIT_LOCK] = "lock",   [STORE_WAIT_UNWRITTEN] = "unwritten", [STORE_WAIT_JOURNAL] = "journal",
    [STORE_WAIT_SPACE] = "space", [STORE_WAIT_BUFFERS] = "buffers",
};

/* Takes the value's reference; false with an exception set. */
static bool put_figures(PyObject *by_name, const char *name, PyObject *figures)
{
    bool done = figures != NULL && PyDict_SetItemString(by_name, name, figures) == 0;

    Py_XDECREF(figures);
    return done;
}

static PyObject *holds_object(const struct store_stalls *stalls)
{
    PyObject *result = PyDict_New();

    for (unsigned kind = 0; result != NULL && kind < STORE_HOLD_KINDS; kind++) {
        const struct store_hold_figures *hold = &stalls->holds[kind];
        PyObject *figures = Py_BuildValue("{s:K,s:K,s:K,s:K}", "count", (wide)hold->count, "steps_max",
                                          (wide)hold->steps_max, "held_max_ns", (wide)hold->held_max_ns,
                                          "cpu_max_ns", (wide)hold->cpu_max_ns);

        if (!put_figures(result, hold_names[kind], figures)) {
            Py_CLEAR(result);
        }
    }
    return result;
}

static PyObject *waits_object(const struct store_stalls *stalls)
{
    PyObject *result = PyDict_New();

    for (unsigned kind = 0; result != NULL && kind < STORE_WAIT_KINDS; kind++) {
        const struct store_wait_figures *wait = &stalls->waits[kind];
        PyObject *figures = Py_BuildValue("{s:K,s:K}", "count", (wide)wait->count, "waited_max_ns",
                                          (wide)wait->waited_max_ns);

        if (!put_figures(result, wait_names[kind], figures)) {
            Py_CLEAR(result);
        }
    }
    return result;
}

PyObject *binding_stalls(struct store_object *self, PyObject *Py_UNUSED(unused))
{
    struct store_stalls stalls;
    PyObject *holds, *waits;

    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    store_stalls(self->store, &stalls);
    gate_leave(&self->gate);
    holds = holds_object(&stalls);
    waits = waits_object(&stalls);
    if (holds == NULL || waits == NULL) {
        Py_XDECREF(holds);
        Py_XDECREF(waits);
        return NULL;
    }
    return Py_BuildValue("{s:N,s:N}", "holds", holds, "waits", waits);
}
