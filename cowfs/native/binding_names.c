/* Methods of FileSystem that deal with names. */
#include "binding.h"

#include <stdlib.h>

/* What one listing returns at most, whatever was asked for: some 4 MiB. */
#define READDIR_LIMIT_MAX 8192u

FILE_SYSTEM_METHOD(binding_lookup)
{
    static char *names[] = {"parent", "name", NULL};
    struct filesystem_attributes attributes;
    struct bytes_argument name;
    uint64_t parent;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#:lookup", names, binding_convert_u64, &parent,
                                     &name.bytes, &name.length) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_lookup(self->filesystem, parent, binding_name(&name), &attributes);
    Py_END_ALLOW_THREADS return binding_result(status, &attributes);
}

FILE_SYSTEM_METHOD(binding_create)
{
    static char *names[] = {"parent", "name", "mode", "uid", "gid", "rdev", "target", NULL};
    struct filesystem_attributes attributes;
    struct filesystem_creation creation = {0};
    struct bytes_argument name, target = {NULL, 0};
    uint64_t parent;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#O&O&O&|O&z#:create", names, binding_convert_u64, &parent,
                                     &name.bytes, &name.length, binding_convert_u32, &creation.mode,
                                     binding_convert_u32, &creation.uid, binding_convert_u32, &creation.gid,
                                     binding_convert_u64, &creation.rdev, &target.bytes, &target.length) ||
        !binding_enter(self))
        return NULL;
    creation.target = binding_name(&target);
    Py_BEGIN_ALLOW_THREADS status =
        filesystem_create(self->filesystem, parent, binding_name(&name), &creation, &attributes);
    Py_END_ALLOW_THREADS return binding_result(status, &attributes);
}

FILE_SYSTEM_METHOD(binding_create_unnamed)
{
    static char *names[] = {"parent", "mode", "uid", "gid", NULL};
    struct filesystem_attributes attributes;
    struct filesystem_creation creation = {0};
    uint64_t parent;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&O&O&:create_unnamed", names, binding_convert_u64,
                                     &parent, binding_convert_u32, &creation.mode, binding_convert_u32, &creation.uid,
                                     binding_convert_u32, &creation.gid) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_create_unnamed(self->filesystem, parent, &creation, &attributes);
    Py_END_ALLOW_THREADS return binding_result(status, &attributes);
}

FILE_SYSTEM_METHOD(binding_link)
{
    static char *names[] = {"node", "new_parent", "new_name", NULL};
    struct filesystem_attributes attributes;
    struct bytes_argument name;
    uint64_t node, parent;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&y#:link", names, binding_convert_u64, &node,
                                     binding_convert_u64, &parent, &name.bytes, &name.length) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_link(self->filesystem, node, parent, binding_name(&name), &attributes);
    Py_END_ALLOW_THREADS return binding_result(status, &attributes);
}

typedef int (*removal_function)(struct filesystem *filesystem, uint64_t parent, struct filesystem_name name);

static PyObject *remove_name(struct file_system_object *self, PyObject *arguments, PyObject *keywords,
                             removal_function function)
{
    static char *names[] = {"parent", "name", NULL};
    struct bytes_argument name;
    uint64_t parent;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#", names, binding_convert_u64, &parent, &name.bytes,
                                     &name.length) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = function(self->filesystem, parent, binding_name(&name));
    Py_END_ALLOW_THREADS return binding_none(status);
}

FILE_SYSTEM_METHOD(binding_unlink)
{
    return remove_name(self, arguments, keywords, filesystem_unlink);
}

FILE_SYSTEM_METHOD(binding_rmdir)
{
    return remove_name(self, arguments, keywords, filesystem_rmdir);
}

FILE_SYSTEM_METHOD(binding_rename)
{
    static char *names[] = {"old_parent", "old_name", "new_parent", "new_name", "flags", NULL};
    struct bytes_argument old_name, new_name;
    uint64_t old_parent, new_parent;
    uint32_t flags;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#O&y#O&:rename", names, binding_convert_u64, &old_parent,
                                     &old_name.bytes, &old_name.length, binding_convert_u64, &new_parent,
                                     &new_name.bytes, &new_name.length, binding_convert_u32, &flags) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_rename(self->filesystem, old_parent, binding_name(&old_name), new_parent,
                                                      binding_name(&new_name), flags);
    Py_END_ALLOW_THREADS return binding_none(status);
}

FILE_SYSTEM_METHOD(binding_readlink)
{
    static char *names[] = {"node", NULL};
    char target[FILESYSTEM_TARGET_LENGTH_MAX];
    uint64_t node;
    size_t length;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:readlink", names, binding_convert_u64, &node) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_readlink(self->filesystem, node, target, &length);
    Py_END_ALLOW_THREADS return status != 0 ? binding_raise(status)
                                            : PyBytes_FromStringAndSize(target, (Py_ssize_t)length);
}

static PyObject *entry_object(const struct filesystem_entry *entry)
{
    PyObject *attributes = binding_attributes(&entry->attributes);
    if (attributes == NULL)
        return NULL;
    return Py_BuildValue("(y#KN)", (const char *)entry->name, (Py_ssize_t)entry->name_length,
                         (unsigned long long)entry->cookie, attributes);
}

FILE_SYSTEM_METHOD(binding_readdir)
{
    static char *names[] = {"node", "cookie", "limit", "lookup", NULL};
    struct filesystem_entry *entries;
    uint64_t node, cookie, limit;
    size_t count = 0;
    int lookup, status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&O&p:readdir", names, binding_convert_u64, &node,
                                     binding_convert_u64, &cookie, binding_convert_u64, &limit, &lookup) ||
        !binding_enter(self))
        return NULL;
    limit = limit < READDIR_LIMIT_MAX ? limit : READDIR_LIMIT_MAX;
    entries = PyMem_RawMalloc((size_t)limit * sizeof *entries + 1);
    if (entries == NULL)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS status =
        filesystem_readdir(self->filesystem, node, cookie, (size_t)limit, lookup != 0, entries, &count);
    Py_END_ALLOW_THREADS PyObject *list = status != 0 ? binding_raise(status) : PyList_New((Py_ssize_t)count);
    for (size_t at = 0; list != NULL && at < count; at++) {
        PyObject *entry = entry_object(&entries[at]);
        if (entry == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)at, entry);
    }
    PyMem_RawFree(entries);
    return list;
}

FILE_SYSTEM_METHOD(binding_parent)
{
    static char *names[] = {"node", NULL};
    uint64_t node, parent = 0;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:parent", names, binding_convert_u64, &node) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_parent(self->filesystem, node, &parent);
    Py_END_ALLOW_THREADS return status != 0 ? binding_raise(status) : PyLong_FromUnsignedLongLong(parent);
}

FILE_SYSTEM_METHOD(binding_path)
{
    static char *names[] = {"node", NULL};
    char *path = NULL;
    uint64_t node;
    size_t length = 0;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:path", names, binding_convert_u64, &node) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_path(self->filesystem, node, &path, &length);
    Py_END_ALLOW_THREADS if (status != 0) return binding_raise(status);
    PyObject *result = PyBytes_FromStringAndSize(path, (Py_ssize_t)length);
    free(path);
    return result;
}
