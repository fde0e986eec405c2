/* Methods of FileSystem that deal with ranges of files. */
#include "binding.h"

FILE_SYSTEM_METHOD(binding_seek)
{
    static char *names[] = {"node", "offset", "hole", NULL};
    uint64_t node, offset, found = 0;
    int hole, status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&p:seek", names, binding_convert_u64, &node,
                                     binding_convert_u64, &offset, &hole) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_seek(self->filesystem, node, offset, hole != 0, &found);
    Py_END_ALLOW_THREADS return status != 0 ? binding_raise(status) : PyLong_FromUnsignedLongLong(found);
}

FILE_SYSTEM_METHOD(binding_allocate)
{
    static char *names[] = {"node", "mode", "offset", "length", NULL};
    uint64_t node, offset, length;
    uint32_t mode;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&O&O&:allocate", names, binding_convert_u64, &node,
                                     binding_convert_u32, &mode, binding_convert_u64, &offset, binding_convert_u64,
                                     &length) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_allocate(self->filesystem, node, mode, offset, length);
    Py_END_ALLOW_THREADS return binding_none(status);
}

FILE_SYSTEM_METHOD(binding_copy_range)
{
    static char *names[] = {"node_in", "offset_in", "node_out", "offset_out", "length", NULL};
    uint64_t node_in, offset_in, node_out, offset_out, length, copied = 0;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&O&O&O&:copy_range", names, binding_convert_u64, &node_in,
                                     binding_convert_u64, &offset_in, binding_convert_u64, &node_out,
                                     binding_convert_u64, &offset_out, binding_convert_u64, &length) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status =
        filesystem_copy_range(self->filesystem, node_in, offset_in, node_out, offset_out, length, &copied);
    Py_END_ALLOW_THREADS return status != 0 ? binding_raise(status) : PyLong_FromUnsignedLongLong(copied);
}
