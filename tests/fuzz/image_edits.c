/* Edits of an image, the checksums above them, and the mutator that chooses edits by what lies where. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "btree/native/internal.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image.h"

#define COPY_LENGTH_MAX 64u
#define PART_SIZE_MAX_BYTES (1u << 20)

/* ---- parts ----------------------------------------------------------------------------------------------------- */

static void part_load(struct image *image, const struct part *part, uint8_t *out)
{
    for (uint32_t at = 0; at < part->size_bytes; at += STORE_BLOCK_SIZE)
        memcpy(out + at, image_block(image, part->places[0] + at / STORE_BLOCK_SIZE), STORE_BLOCK_SIZE);
}

static void part_save(struct image *image, const struct part *part, const uint8_t *bytes, unsigned copies)
{
    for (unsigned copy = 0; copy < copies; copy++)
        for (uint32_t at = 0; part->places[copy] && at < part->size_bytes; at += STORE_BLOCK_SIZE)
            memcpy(image_block(image, part->places[copy] + at / STORE_BLOCK_SIZE), bytes + at, STORE_BLOCK_SIZE);
}

static bool is_node(const struct part *part)
{
    return part->kind == PART_NODE || part->kind == PART_SYSTEM_NODE;
}

static bool is_valid_node(const struct part *part, const uint8_t *bytes)
{
    return is_node(part) && page_validate(bytes, part->size_bytes, page_level(bytes), page_birth(bytes)) == 0;
}

/* ---- edits of nodes that leave them valid ------------------------------------------------------------------------ */

static void insert(uint8_t *page, uint32_t size, const uint8_t *key, size_t key_length, const uint8_t *value,
                   uint16_t value_length, uint16_t kind)
{
    uint8_t *scratch = malloc(size);
    const struct page_item item = {
        .prefix = key,
        .suffix = key,
        .value = value,
        .suffix_length = (uint16_t)key_length,
        .value_length = value_length,
        .kind = kind,
    };
    bool exact;
    uint16_t slot = page_find(page, key, key_length, &exact);
    if (scratch && !exact && key_length + value_length <= page_item_length_max(size))
        (void)page_insert(page, size, slot, &item, scratch);
    free(scratch);
}

/* An item of another page; the value replaces the first eight bytes of its key, or the last ones. */
static void insert_item(uint8_t *page, uint32_t size, const uint8_t *other, const struct edit *edit)
{
    struct page_item item;
    uint8_t key[STORE_KEY_LENGTH_MAX], value[STORE_EXTENT_LENGTH_MAX + 1024];
    page_get(other, (uint16_t)(edit->offset % page_count(other)), &item);
    uint16_t length = item_copy_key(&item, key);
    uint64_t number = edit->value >> 8;
    if (page_level(other) != page_level(page) || length == 0 || item.value_length > sizeof value)
        return;
    memcpy(value, item.value, item.value_length);
    if ((edit->value & 3) == 1 && length >= 8)
        save64_big(key + length - 8, number);
    else if ((edit->value & 3) == 2 && length >= 8)
        save64_big(key, number);
    else if ((edit->value & 3) == 3)
        key[length - 1] = (uint8_t)number;
    insert(page, size, key, length, value, item.value_length, item.kind);
}

/* Bytes from the end of a value become unused. */
static void shorten_item(uint8_t *page, uint32_t slot, uint64_t value)
{
    uint8_t *at = page + NODE_SLOTS + slot * SLOT_LENGTH + SLOT_VALUE_LENGTH;
    uint16_t length = load16(at) & 0x7fff, kind = load16(at) & SLOT_KIND_BIT;
    if (length == 0)
        return;
    uint16_t less = (uint16_t)(1 + value % length);
    save16(at, (uint16_t)((length - less) | kind));
    save16(page + NODE_GARBAGE, (uint16_t)(load16(page + NODE_GARBAGE) + less));
}

static void forge_queue(const struct seed *seed, struct image *image, uint8_t *page, uint32_t size,
                        const struct edit *edit)
{
    uint8_t key[9] = {SYSTEM_QUEUE}, value[QUEUE_RECORD_LENGTH] = {0};
    const struct pointer_place *place = &seed->pointers[edit->offset % seed->pointer_count];
    const struct part *part = &seed->parts[place->part];
    uint8_t *bytes = malloc(part->size_bytes);
    if (bytes == NULL)
        return;
    part_load(image, part, bytes);
    save64_big(key + 1, 1 + (edit->value >> 32 & 3));
    value[QUEUE_KIND] = (uint8_t)(edit->value & 3);
    save64(value + QUEUE_BUCKET, edit->value >> 8 & 15);
    save64(value + QUEUE_TARGET, edit->value >> 12 & 15);
    save64(value + QUEUE_FLOOR, edit->value >> 16 & 15);
    memcpy(value + QUEUE_ROOT, bytes + place->offset, POINTER_LENGTH);
    value[QUEUE_ROOT + ROOT_LEVEL] = (uint8_t)(edit->value >> 24 & 1);
    insert(page, size, key, sizeof key, value, sizeof value, STORE_VALUE_PLAIN);
    free(bytes);
}

/* ---- edits ------------------------------------------------------------------------------------------------------- */

static uint64_t load_width(const uint8_t *at, unsigned width, bool big)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value |= (uint64_t)at[big ? width - 1 - i : i] << (8 * i);
    return value;
}

static void save_width(uint8_t *at, unsigned width, bool big, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        at[big ? width - 1 - i : i] = (uint8_t)(value >> (8 * i));
}

static void edit_bytes(struct image *image, const struct edit *edit, const struct part *part, uint8_t *bytes,
                       const struct part *other, const uint8_t *other_bytes)
{
    uint32_t offset = edit->offset % part->size_bytes, room = part->size_bytes - offset;
    unsigned width = edit->width & 15u;
    bool big = edit->width & EDIT_BIG;
    width = width == 0 ? 1 : width > 8 ? 8 : width;
    width = width > room ? room : width;
    uint64_t present = load_width(bytes + offset, width, big);
    switch (edit->operation % EDIT_OPERATIONS) {
    case EDIT_SET:
    case EDIT_ONE_COPY:
        save_width(bytes + offset, width, big, edit->value);
        break;
    case EDIT_ADD:
        save_width(bytes + offset, width, big, present + edit->value);
        break;
    case EDIT_FLIP:
        save_width(bytes + offset, width, big, present ^ UINT64_C(1) << edit->value % (8 * width));
        break;
    case EDIT_COPY: {
        uint32_t from = (uint32_t)(edit->value & 0xffff) % other->size_bytes;
        uint32_t length = (uint32_t)(edit->value >> 16) % COPY_LENGTH_MAX + 1;
        length = length > room ? room : length;
        length = length > other->size_bytes - from ? other->size_bytes - from : length;
        memmove(bytes + offset, other_bytes + from, length);
        break;
    }
    case EDIT_COPY_PART:
        memcpy(bytes, other_bytes, part->size_bytes < other->size_bytes ? part->size_bytes : other->size_bytes);
        break;
    default:
        break;
    }
    if (!is_valid_node(part, bytes))
        return;
    switch (edit->operation % EDIT_OPERATIONS) {
    case EDIT_REMOVE_ITEM:
        if (page_count(bytes) > 1)
            page_delete(bytes, (uint16_t)(edit->offset % page_count(bytes)));
        break;
    case EDIT_INSERT_ITEM:
        if (is_valid_node(other, other_bytes))
            insert_item(bytes, part->size_bytes, other_bytes, edit);
        break;
    case EDIT_SHORTEN_ITEM:
        shorten_item(bytes, edit->offset % page_count(bytes), edit->value);
        break;
    case EDIT_FORGE_QUEUE:
        if (part->kind == PART_SYSTEM_NODE && page_level(bytes) == 0)
            forge_queue(image->seed, image, bytes, part->size_bytes, edit);
        break;
    default:
        break;
    }
}

static void edit_one(struct image *image, const struct edit *edit, bool *changed)
{
    const struct seed *seed = image->seed;
    size_t index = edit->part % seed->part_count, other_index = edit->other_part % seed->part_count;
    const struct part *part = &seed->parts[index], *other = &seed->parts[other_index];
    uint8_t *bytes = malloc(part->size_bytes), *other_bytes = malloc(other->size_bytes);
    if (bytes == NULL || other_bytes == NULL)
        fuzz_fail("memory", -ENOMEM);
    part_load(image, part, bytes);
    part_load(image, other, other_bytes);
    edit_bytes(image, edit, part, bytes, other, other_bytes);
    bool one_copy = edit->operation % EDIT_OPERATIONS == EDIT_ONE_COPY && part->places[1];
    part_save(image, part, bytes, one_copy ? 1 : 2);
    changed[index] |= !one_copy;
    free(bytes);
    free(other_bytes);
}

/* ---- checksums --------------------------------------------------------------------------------------------------- */

static uint64_t checksum_of(const struct seed *seed, const uint64_t *checksums, uint64_t address, bool *known)
{
    for (size_t i = 0; i < seed->part_count; i++)
        if (is_node(&seed->parts[i]) && seed->parts[i].places[0] == address) {
            *known = true;
            return checksums[i];
        }
    *known = false;
    return 0;
}

/* The pointers in a part get the checksums of what they lead to now, wherever an edit made them lead. */
static bool mend_pointers(struct image *image, size_t index, size_t *next_pointer, const uint64_t *checksums,
                          uint8_t *bytes)
{
    const struct seed *seed = image->seed;
    bool mended = false;
    for (; *next_pointer < seed->pointer_count && seed->pointers[*next_pointer].part == index; ++*next_pointer) {
        uint8_t *pointer = bytes + seed->pointers[*next_pointer].offset;
        bool known;
        uint64_t checksum = checksum_of(seed, checksums, load64(pointer + POINTER_ADDRESS), &known);
        if (known && load64(pointer + POINTER_CHECKSUM) != checksum) {
            save64(pointer + POINTER_CHECKSUM, checksum);
            mended = true;
        }
    }
    return mended;
}

static void mend_nodes(struct image *image, const bool *changed, uint64_t *checksums)
{
    const struct seed *seed = image->seed;
    size_t next_pointer = 1; /* the first is the superblock's */
    uint8_t bytes[16384];
    for (size_t i = 0; i < seed->part_count; i++)
        checksums[i] = seed->parts[i].checksum;
    for (size_t i = 0; i < seed->part_count; i++) {
        const struct part *part = &seed->parts[i];
        bool has_pointers = next_pointer < seed->pointer_count && seed->pointers[next_pointer].part == i;
        if (!is_node(part) || (!changed[i] && !has_pointers))
            continue;
        part_load(image, part, bytes);
        if (mend_pointers(image, i, &next_pointer, checksums, bytes) || changed[i]) {
            checksums[i] = store_checksum(bytes, part->size_bytes);
            part_save(image, part, bytes, 2);
        }
    }
}

static void mend_group(struct image *image, const struct part *part)
{
    uint8_t *bytes = malloc(part->size_bytes);
    if (bytes == NULL)
        fuzz_fail("memory", -ENOMEM);
    part_load(image, part, bytes);
    uint32_t payload = load32(bytes + JOURNAL_PAYLOAD_LENGTH);
    if (payload <= part->size_bytes - JOURNAL_PAYLOAD) {
        save64(bytes + JOURNAL_CHECKSUM, 0);
        save64(bytes + JOURNAL_CHECKSUM, store_checksum(bytes, JOURNAL_PAYLOAD + payload));
        part_save(image, part, bytes, 1);
    }
    free(bytes);
}

/* Of a pool with one bitmap page. */
static uint64_t mend_bitmap(struct image *image, const struct part *part)
{
    uint8_t *bytes = image_block(image, part->places[0]);
    uint64_t words[3] = {0};
    save64(bytes + BITMAP_CHECKSUM, 0);
    save64(bytes + BITMAP_CHECKSUM, store_checksum(bytes, STORE_BLOCK_SIZE));
    save64(&words[0], load32(bytes + BITMAP_PAGE_NUMBER));
    save64(&words[1], load64(bytes + BITMAP_SEQUENCE));
    save64(&words[2], load64(bytes + BITMAP_CHECKSUM));
    return store_checksum(words, sizeof words);
}

static void mend(struct image *image, const bool *changed)
{
    const struct seed *seed = image->seed;
    uint64_t checksums[PARTS_MAX], digest = 0;
    bool new_digest = false;
    mend_nodes(image, changed, checksums);
    for (size_t i = 0; i < seed->part_count; i++) {
        if (changed[i] && seed->parts[i].kind == PART_JOURNAL)
            mend_group(image, &seed->parts[i]);
        if (changed[i] && seed->parts[i].kind == PART_BITMAP) {
            digest = mend_bitmap(image, &seed->parts[i]);
            new_digest = true;
        }
    }
    uint8_t superblock[STORE_BLOCK_SIZE];
    size_t first_pointer = 0;
    part_load(image, &seed->parts[0], superblock);
    (void)mend_pointers(image, 0, &first_pointer, checksums, superblock);
    if (new_digest)
        save64(superblock + SUPERBLOCK_BITMAP_DIGEST, digest);
    save64(superblock + SUPERBLOCK_CHECKSUM, store_checksum(superblock, SUPERBLOCK_CHECKSUM));
    part_save(image, &seed->parts[0], superblock, 2);
}

void image_edit(struct image *image, const uint8_t *edits, size_t length)
{
    bool changed[PARTS_MAX] = {false};
    for (size_t count = 0; count < EDITS_MAX && length >= sizeof(struct edit); count++) {
        struct edit edit;
        memcpy(&edit, edits, sizeof edit);
        edits += sizeof edit;
        length -= sizeof edit;
        edit_one(image, &edit, changed);
    }
    mend(image, changed);
}

/* ---- choosing edits ---------------------------------------------------------------------------------------------- */

static uint64_t interesting_value(const struct seed *seed, uint64_t *random)
{
    static const uint64_t edges[] = {
        0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 127, 128, 255, 256, 511, 512, 4095, 4096, 4097, 0x7fff, 0x8000, 0xffff,
        0x7fffffff, 0x80000000, 0xffffffff, UINT64_C(1) << 40, (UINT64_C(1) << 40) - 1, UINT64_C(1) << 48,
        UINT64_C(1) << 51, UINT64_C(1) << 52, UINT64_C(1) << 60, UINT64_C(1) << 62, INT64_MAX, UINT64_C(1) << 63,
        UINT64_MAX - 1, UINT64_MAX, UINT64_MAX / 2, UINT64_MAX / 2 - 1, IMAGE_BLOCKS, IMAGE_BLOCKS - 1,
        IMAGE_BLOCKS - 16, IMAGE_BLOCKS - 17, 16, 272, 274,
    };
    switch (fuzz_draw(random, 6)) {
    case 0:
    case 1:
        return edges[fuzz_draw(random, sizeof edges / sizeof *edges)];
    case 2:
        return fuzz_draw(random, seed->ids_max + 3);
    case 3:
        return seed->parts[fuzz_draw(random, seed->part_count)].places[0];
    case 4:
        return fuzz_draw(random, IMAGE_BLOCKS);
    default:
        return fuzz_draw(random, UINT64_MAX);
    }
}

static void choose_edit(const struct seed *seed, uint64_t *random, struct edit *out)
{
    const struct field *field = &seed->fields[fuzz_draw(random, seed->field_count)];
    if (fuzz_draw(random, 3) == 0) { /* the superblock and the system tree are small and matter most */
        size_t part;
        do
            part = fuzz_draw(random, seed->part_count);
        while (seed->parts[part].kind == PART_NODE && fuzz_draw(random, 8));
        for (int tries = 0; tries < 200 && field->part != part; tries++)
            field = &seed->fields[fuzz_draw(random, seed->field_count)];
    }
    const struct field *other = &seed->fields[fuzz_draw(random, seed->field_count)];
    *out = (struct edit){
        .operation = (uint8_t)fuzz_draw(random, 2) ? (uint8_t)fuzz_draw(random, EDIT_FLIP + 1)
                                                   : (uint8_t)fuzz_draw(random, EDIT_OPERATIONS),
        .width = (uint8_t)(field->width | (field->big ? EDIT_BIG : 0)),
        .part = field->part,
        .offset = field->offset,
        .other_part = other->part,
        .value = interesting_value(seed, random),
    };
    if (out->operation == EDIT_ADD && fuzz_draw(random, 3))
        out->value = fuzz_draw(random, 9) - 4;
    if (out->operation == EDIT_COPY && fuzz_draw(random, 2)) { /* one pointer for another */
        const struct pointer_place *to = &seed->pointers[fuzz_draw(random, seed->pointer_count)];
        const struct pointer_place *from = &seed->pointers[fuzz_draw(random, seed->pointer_count)];
        out->part = to->part;
        out->offset = to->offset;
        out->other_part = from->part;
        out->value = from->offset | (uint64_t)(ROOT_LENGTH - 1 - 8 * fuzz_draw(random, 2)) << 16;
    } else if (out->operation == EDIT_COPY) {
        out->value = other->offset | (other->width - 1 + 8 * fuzz_draw(random, 6)) << 16;
    } else if (out->operation >= EDIT_REMOVE_ITEM && out->operation <= EDIT_FORGE_QUEUE) {
        out->offset = (uint16_t)fuzz_draw(random, UINT16_MAX);
        if (out->operation == EDIT_INSERT_ITEM)
            out->value = fuzz_draw(random, 4) | interesting_value(seed, random) << 8;
        if (out->operation == EDIT_FORGE_QUEUE)
            out->part = (uint16_t)(seed->part_count - 1 - fuzz_draw(random, 2));
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t length_max, unsigned number)
{
    uint64_t random = (uint64_t)number << 16 | 0x9e37;
    struct input_header header = {0};
    size_t edits = length > sizeof header ? (length - sizeof header) / sizeof(struct edit) : 0;
    if (length_max < sizeof header + sizeof(struct edit))
        return 0;
    if (length < sizeof header || fuzz_draw(&random, 8) == 0) {
        header.seed = (uint8_t)fuzz_draw(&random, SEEDS);
        header.flags = (uint8_t)(fuzz_draw(&random, 128) & fuzz_draw(&random, 128));
        if (fuzz_draw(&random, 2)) /* most of the time goes into changes */
            header.flags |= INPUT_NO_CHANGES | INPUT_ABANDON;
        memcpy(bytes, &header, sizeof header);
    }
    memcpy(&header, bytes, sizeof header);
    const struct seed *seed = seed_get(header.seed);
    size_t edits_max = (length_max - sizeof header) / sizeof(struct edit);
    edits_max = edits_max > EDITS_MAX ? EDITS_MAX : edits_max;
    edits = edits > edits_max ? edits_max : edits;
    uint8_t *list = bytes + sizeof header;
    uint64_t what = edits == 0 ? 0 : fuzz_draw(&random, 8);
    size_t chosen = edits ? fuzz_draw(&random, edits) : 0;
    struct edit edit;
    if (what <= 3 && edits < edits_max) {
        choose_edit(seed, &random, &edit);
        memcpy(list + edits++ * sizeof edit, &edit, sizeof edit);
    } else if (what <= 5) {
        choose_edit(seed, &random, &edit);
        memcpy(list + chosen * sizeof edit, &edit, sizeof edit);
    } else if (what == 6 && edits > 1) {
        memmove(list + chosen * sizeof edit, list + (chosen + 1) * sizeof edit, (edits - chosen - 1) * sizeof edit);
        edits--;
    } else {
        memcpy(&edit, list + chosen * sizeof edit, sizeof edit);
        (void)LLVMFuzzerMutate((uint8_t *)&edit.value, sizeof edit.value, sizeof edit.value);
        memcpy(list + chosen * sizeof edit, &edit, sizeof edit);
    }
    return sizeof header + edits * sizeof edit;
}
