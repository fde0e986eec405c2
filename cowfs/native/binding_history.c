/* Methods of FileSystem that compare trees. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>

#include "differences.h"

static PyObject *ranges_object(const struct filesystem_difference *difference)
{
    PyObject *list = PyList_New((Py_ssize_t)difference->range_count);
    for (size_t at = 0; list != NULL && at < difference->range_count; at++) {
        PyObject *range = Py_BuildValue("(KK)", (unsigned long long)difference->ranges[at].offset_bytes,
                                        (unsigned long long)difference->ranges[at].length_bytes);
        if (range == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)at, range);
    }
    return list;
}

static PyObject *names_object(const struct filesystem_difference *difference)
{
    PyObject *list = PyList_New((Py_ssize_t)difference->name_count);
    for (size_t at = 0; list != NULL && at < difference->name_count; at++) {
        const struct filesystem_name_change *change = &difference->names[at];
        PyObject *name = Py_BuildValue("(OKy#)", change->added ? Py_True : Py_False, (unsigned long long)change->parent,
                                       (const char *)change->name, (Py_ssize_t)change->name_length);
        if (name == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)at, name);
    }
    return list;
}

static PyObject *attributes_or_none(bool present, const struct filesystem_attributes *attributes)
{
    return present ? binding_attributes(attributes) : Py_NewRef(Py_None);
}

/* (inode, kinds, old attributes, new attributes, ranges, names) */
static PyObject *difference_object(const struct filesystem_difference *difference)
{
    /* "N" takes the references over, and fails for those that could not be made. */
    return Py_BuildValue("(KINNNN)", (unsigned long long)difference->inode, difference->kinds,
                         attributes_or_none(difference->in_old, &difference->old_attributes),
                         attributes_or_none(difference->in_new, &difference->new_attributes),
                         ranges_object(difference), names_object(difference));
}

FILE_SYSTEM_METHOD(binding_diff)
{
    static char *names[] = {"old_object_id", "new_object_id", "first_inode", "last_inode", "limit", NULL};
    struct filesystem_differences differences = {0};
    uint64_t old_object_id, new_object_id, first_inode = 0, last_inode = UINT64_MAX, limit = 1000;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&|$O&O&O&:diff", names, binding_convert_u64,
                                     &old_object_id, binding_convert_u64, &new_object_id, binding_convert_u64,
                                     &first_inode, binding_convert_u64, &last_inode, binding_convert_u64, &limit) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_diff(self->filesystem, old_object_id, new_object_id, first_inode,
                                                    last_inode, (size_t)limit, &differences);
    Py_END_ALLOW_THREADS PyObject *list = status != 0 ? binding_raise(status) : PyList_New(0);
    for (size_t at = 0; list != NULL && at < differences.count; at++) {
        PyObject *difference = difference_object(&differences.items[at]);
        if (difference == NULL || PyList_Append(list, difference) != 0)
            Py_CLEAR(list);
        Py_XDECREF(difference);
    }
    filesystem_differences_free(&differences);
    return list;
}

/* (attributes or None, birth) */
FILE_SYSTEM_METHOD(binding_trace)
{
    static char *names[] = {"object_id", "path", NULL};
    struct filesystem_trace trace;
    struct bytes_argument path;
    uint64_t object_id;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#:trace", names, binding_convert_u64, &object_id,
                                     &path.bytes, &path.length) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_trace(self->filesystem, object_id, binding_name(&path), &trace);
    Py_END_ALLOW_THREADS if (status != 0) return binding_raise(status);
    return Py_BuildValue("(NK)", attributes_or_none(trace.found, &trace.attributes), (unsigned long long)trace.birth);
}

FILE_SYSTEM_METHOD(binding_object_path)
{
    static char *names[] = {"object_id", "inode", NULL};
    uint64_t object_id, inode;
    char *path = NULL;
    size_t length = 0;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:object_path", names, binding_convert_u64, &object_id,
                                     binding_convert_u64, &inode) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_object_path(self->filesystem, object_id, inode, &path, &length);
    Py_END_ALLOW_THREADS if (status != 0) return binding_raise(status);
    PyObject *bytes = PyBytes_FromStringAndSize(path, (Py_ssize_t)length);
    free(path);
    return bytes;
}
