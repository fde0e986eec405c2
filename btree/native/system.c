/* Access to the system tree, which the running checkpoint alone changes and opening alone reads. */
#include <errno.h>

#include "internal.h"

size_t system_key(uint8_t *key, enum system_key_type type, uint64_t id)
{
    key[0] = (uint8_t)type;
    save64_big(key + 1, id);
    return 9;
}

/* Runs under the lock until what it needs is in memory. */
static int system_change(struct store *store, const uint8_t *key, size_t key_length, const uint8_t *value,
                         size_t value_length, bool put)
{
    for (;;) {
        struct chain *chain = &store->system_chain;
        struct miss miss;
        struct path path = {.valid = false};
        pthread_mutex_lock(&store->lock);
        int result = tree_prepare(store, &chain->head, NULL, key, key_length, &miss);
        if (result == 0)
            result = spares_fill(store, 3u * chain->head.level + 6u);
        if (result == 0 && put)
            tree_put(store, chain, &path, key, key_length, value, (uint16_t)value_length, STORE_VALUE_PLAIN);
        else if (result == 0 && tree_delete(store, chain, &path, key, key_length))
            tree_tidy(store, chain, key, key_length);
        pthread_mutex_unlock(&store->lock);
        if (result != STORE_AGAIN)
            return result;
        result = cache_load(store, &miss.pointer, miss.level, NULL);
        if (result < 0)
            return result;
    }
}

int system_put(struct store *store, const uint8_t *key, size_t key_length, const uint8_t *value, size_t value_length)
{
    if (key_length + value_length > store_item_length_max(store))
        return -EMSGSIZE;
    return system_change(store, key, key_length, value, value_length, true);
}

int system_delete(struct store *store, const uint8_t *key, size_t key_length)
{
    return system_change(store, key, key_length, NULL, 0, false);
}

int system_seek(struct store *store, struct system_item *item)
{
    for (;;) {
        struct cursor cursor;
        struct miss miss;
        pthread_mutex_lock(&store->lock);
        int result = tree_cursor_seek(store, &store->system_chain.head, NULL, &cursor, item->key, item->key_length,
                                      &miss);
        if (result == 0 && cursor.item.value_length > sizeof item->value)
            result = -EUCLEAN;
        if (result == 0) {
            memcpy(item->key, cursor.item.key, cursor.item.key_length);
            item->key_length = cursor.item.key_length;
            memcpy(item->value, cursor.item.value, cursor.item.value_length);
            item->value_length = cursor.item.value_length;
        }
        pthread_mutex_unlock(&store->lock);
        if (result != STORE_AGAIN)
            return result;
        result = cache_load(store, &miss.pointer, miss.level, NULL);
        if (result < 0)
            return result;
    }
}
