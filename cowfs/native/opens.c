/* Which nodes are open. What is not can be shown by no descriptor: after a rollback the kernel has to drop at once only
 * what it keeps of those that are. */
#include "internal.h"

int filesystem_opened(struct filesystem *filesystem, uint64_t node)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    int status = map_reserve(&filesystem->opens, 1);
    if (status == 0)
        (*map_insert(&filesystem->opens, node))++;
    pthread_mutex_unlock(&filesystem->view_mutex);
    return status;
}

void filesystem_closed(struct filesystem *filesystem, uint64_t node)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    uint64_t *count = map_get(&filesystem->opens, node);
    if (count != NULL && --*count == 0)
        map_remove(&filesystem->opens, node, 0);
    pthread_mutex_unlock(&filesystem->view_mutex);
}

size_t filesystem_open_nodes(struct filesystem *filesystem)
{
    pthread_mutex_lock(&filesystem->view_mutex);
    size_t count = filesystem->opens.count;
    pthread_mutex_unlock(&filesystem->view_mutex);
    return count;
}
