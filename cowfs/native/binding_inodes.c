/* Methods of FileSystem that deal with inodes, their data and their extended attributes. */
#include "binding.h"

#include <errno.h>

/* A longer read first asks how long the file is before memory is taken for it. */
#define READ_LENGTH_UNASKED (1u << 20)

static bool node_only(struct file_system_object *self, PyObject *arguments, PyObject *keywords, uint64_t *node)
{
    static char *names[] = {"node", NULL};
    return PyArg_ParseTupleAndKeywords(arguments, keywords, "O&", names, binding_convert_u64, node) &&
           binding_enter(self);
}

FILE_SYSTEM_METHOD(binding_getattr)
{
    struct filesystem_attributes attributes;
    uint64_t node;
    int status;
    if (!node_only(self, arguments, keywords, &node))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_getattr(self->filesystem, node, &attributes);
    Py_END_ALLOW_THREADS return binding_result(status, &attributes);
}

/* A number that -1 leaves out. */
static bool change_number(long long value, long long value_max, unsigned field, struct filesystem_change *change)
{
    if (value == -1)
        return true;
    if (value < -1 || value > value_max) {
        PyErr_SetString(PyExc_OverflowError, "a value is out of range");
        return false;
    }
    change->fields |= field;
    return true;
}

static bool change_time(PyObject *value, unsigned field, struct filesystem_change *change, struct filesystem_time *out)
{
    if (value == Py_None)
        return true;
    long long nanoseconds = PyLong_AsLongLong(value);
    if (nanoseconds == -1 && PyErr_Occurred() != NULL)
        return false;
    *out = binding_time(nanoseconds);
    change->fields |= field;
    return true;
}

FILE_SYSTEM_METHOD(binding_setattr)
{
    static char *names[] = {"node", "mode", "uid", "gid", "size", "atime_ns", "mtime_ns", "ctime_ns", NULL};
    struct filesystem_attributes attributes;
    struct filesystem_change change = {0};
    PyObject *atime = Py_None, *mtime = Py_None, *ctime = Py_None;
    long long mode = -1, uid = -1, gid = -1, size = -1;
    uint64_t node;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&|$LLLLOOO:setattr", names, binding_convert_u64, &node,
                                     &mode, &uid, &gid, &size, &atime, &mtime, &ctime) ||
        !change_number(mode, UINT32_MAX, FILESYSTEM_SET_MODE, &change) ||
        !change_number(uid, UINT32_MAX, FILESYSTEM_SET_UID, &change) ||
        !change_number(gid, UINT32_MAX, FILESYSTEM_SET_GID, &change) ||
        !change_number(size, INT64_MAX, FILESYSTEM_SET_SIZE, &change) ||
        !change_time(atime, FILESYSTEM_SET_ATIME, &change, &change.atime) ||
        !change_time(mtime, FILESYSTEM_SET_MTIME, &change, &change.mtime) ||
        !change_time(ctime, FILESYSTEM_SET_CTIME, &change, &change.ctime) || !binding_enter(self))
        return NULL;
    change.mode = (uint32_t)mode;
    change.uid = (uint32_t)uid;
    change.gid = (uint32_t)gid;
    change.size_bytes = (uint64_t)size;
    Py_BEGIN_ALLOW_THREADS status = filesystem_setattr(self->filesystem, node, &change, &attributes);
    Py_END_ALLOW_THREADS return binding_result(status, &attributes);
}

FILE_SYSTEM_METHOD(binding_setflags)
{
    static char *names[] = {"node", "flags", NULL};
    uint64_t node;
    uint32_t flags;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:setflags", names, binding_convert_u64, &node,
                                     binding_convert_u32, &flags) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_setflags(self->filesystem, node, flags);
    Py_END_ALLOW_THREADS return binding_none(status);
}

FILE_SYSTEM_METHOD(binding_may_open)
{
    static char *names[] = {"node", "flags", NULL};
    uint64_t node;
    uint32_t flags;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:may_open", names, binding_convert_u64, &node,
                                     binding_convert_u32, &flags) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_may_open(self->filesystem, node, flags);
    Py_END_ALLOW_THREADS return binding_none(status);
}

FILE_SYSTEM_METHOD(binding_forget)
{
    static char *names[] = {"node", "count", NULL};
    uint64_t node, count;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:forget", names, binding_convert_u64, &node,
                                     binding_convert_u64, &count) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_forget(self->filesystem, node, count);
    Py_END_ALLOW_THREADS return binding_none(status);
}

FILE_SYSTEM_METHOD(binding_lookup_count)
{
    uint64_t node, count;
    if (!node_only(self, arguments, keywords, &node))
        return NULL;
    Py_BEGIN_ALLOW_THREADS count = filesystem_lookup_count(self->filesystem, node);
    Py_END_ALLOW_THREADS return PyLong_FromUnsignedLongLong(count);
}

FILE_SYSTEM_METHOD(binding_release_all)
{
    static char *names[] = {NULL};
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, ":release_all", names) || !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_release_all(self->filesystem);
    Py_END_ALLOW_THREADS return binding_none(status);
}

/* ---- data ---------------------------------------------------------------------------------------------------- */

FILE_SYSTEM_METHOD(binding_read)
{
    static char *names[] = {"node", "offset", "length", NULL};
    struct filesystem_attributes attributes;
    uint64_t node, offset, length;
    size_t got = 0;
    int status = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&O&:read", names, binding_convert_u64, &node,
                                     binding_convert_u64, &offset, binding_convert_u64, &length) ||
        !binding_enter(self))
        return NULL;
    if (length > READ_LENGTH_UNASKED) {
        Py_BEGIN_ALLOW_THREADS status = filesystem_getattr(self->filesystem, node, &attributes);
        Py_END_ALLOW_THREADS if (status != 0) return binding_raise(status);
        uint64_t left = offset < attributes.size_bytes ? attributes.size_bytes - offset : 0;
        length = length < left ? length : left;
    }
    if (length > PY_SSIZE_T_MAX)
        return PyErr_NoMemory();
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (result == NULL)
        return NULL;
    char *buffer = PyBytes_AS_STRING(result);
    Py_BEGIN_ALLOW_THREADS status = filesystem_read(self->filesystem, node, offset, buffer, (size_t)length, &got);
    Py_END_ALLOW_THREADS if (status != 0)
    {
        Py_DECREF(result);
        return binding_raise(status);
    }
    if (got < length)
        _PyBytes_Resize(&result, (Py_ssize_t)got);
    return result;
}

FILE_SYSTEM_METHOD(binding_write)
{
    static char *names[] = {"node", "offset", "data", "append", NULL};
    Py_buffer data;
    uint64_t node, offset;
    int append = 0, status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&y*|p:write", names, binding_convert_u64, &node,
                                     binding_convert_u64, &offset, &data, &append))
        return NULL;
    if (!binding_enter(self)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS status =
        filesystem_write_flagged(self->filesystem, node, offset, data.buf, (size_t)data.len,
                                 append ? (unsigned)FILESYSTEM_WRITE_APPEND : 0);
    Py_END_ALLOW_THREADS PyObject *result = status != 0 ? binding_raise(status) : PyLong_FromSsize_t(data.len);
    PyBuffer_Release(&data);
    return result;
}

FILE_SYSTEM_METHOD(binding_fsync)
{
    static char *names[] = {"node", "handle", NULL};
    uint64_t node, handle = 0;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&|O&:fsync", names, binding_convert_u64, &node,
                                     binding_convert_u64, &handle) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_fsync(self->filesystem, node, handle);
    Py_END_ALLOW_THREADS return binding_none(status);
}

/* ---- extended attributes ------------------------------------------------------------------------------------- */

FILE_SYSTEM_METHOD(binding_getxattr)
{
    static char *names[] = {"node", "name", NULL};
    struct bytes_argument name;
    uint64_t node;
    size_t length = 0;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#:getxattr", names, binding_convert_u64, &node,
                                     &name.bytes, &name.length) ||
        !binding_enter(self))
        return NULL;
    char *value = PyMem_RawMalloc(FILESYSTEM_XATTR_LENGTH_MAX);
    if (value == NULL)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS status =
        filesystem_getxattr(self->filesystem, node, binding_name(&name), value, FILESYSTEM_XATTR_LENGTH_MAX, &length);
    Py_END_ALLOW_THREADS PyObject *result =
        status != 0 ? binding_raise(status) : PyBytes_FromStringAndSize(value, (Py_ssize_t)length);
    PyMem_RawFree(value);
    return result;
}

FILE_SYSTEM_METHOD(binding_setxattr)
{
    static char *names[] = {"node", "name", "value", "flags", NULL};
    struct bytes_argument name, value;
    uint64_t node;
    uint32_t flags = 0;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#y#|O&:setxattr", names, binding_convert_u64, &node,
                                     &name.bytes, &name.length, &value.bytes, &value.length, binding_convert_u32,
                                     &flags) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status =
        filesystem_setxattr(self->filesystem, node, binding_name(&name), value.bytes, (size_t)value.length, flags);
    Py_END_ALLOW_THREADS return binding_none(status);
}

FILE_SYSTEM_METHOD(binding_removexattr)
{
    static char *names[] = {"node", "name", NULL};
    struct bytes_argument name;
    uint64_t node;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#:removexattr", names, binding_convert_u64, &node,
                                     &name.bytes, &name.length) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_removexattr(self->filesystem, node, binding_name(&name));
    Py_END_ALLOW_THREADS return binding_none(status);
}

/* A list of the NUL-terminated names. */
static PyObject *names_object(const char *list, size_t length)
{
    PyObject *result = PyList_New(0);
    for (size_t at = 0; result != NULL && at < length;) {
        PyObject *name = PyBytes_FromString(list + at);
        if (name == NULL || PyList_Append(result, name) != 0)
            Py_CLEAR(result);
        else
            at += (size_t)PyBytes_GET_SIZE(name) + 1;
        Py_XDECREF(name);
    }
    return result;
}

FILE_SYSTEM_METHOD(binding_listxattr)
{
    uint64_t node;
    size_t length = 0;
    int status;
    if (!node_only(self, arguments, keywords, &node))
        return NULL;
    char *list = PyMem_RawMalloc(FILESYSTEM_XATTR_LIST_LENGTH_MAX);
    if (list == NULL)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS status =
        filesystem_listxattr(self->filesystem, node, list, FILESYSTEM_XATTR_LIST_LENGTH_MAX, &length);
    Py_END_ALLOW_THREADS PyObject *result =
        status != 0 ? binding_raise(status == -ERANGE ? -E2BIG : status) : names_object(list, length);
    PyMem_RawFree(list);
    return result;
}
