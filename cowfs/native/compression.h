/* Compressing up to 128 KiB of file content, and back. Knows neither files nor the store.
 *
 * What compressed content looks like on the medium: its length in bytes (4), 4 zeros, that many bytes (a block of LZ4,
 * or a frame of zstd), zeros up to a whole number of blocks. */
#ifndef COWFS_COMPRESSION_H
#define COWFS_COMPRESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../btree/native/store.h"

#define COMPRESSION_BYTES_MAX (STORE_EXTENT_BLOCKS_MAX * STORE_BLOCK_SIZE)
#define COMPRESSION_HEADER_BYTES 8u
#define COMPRESSION_ZSTD_LEVEL_MAX 19
/* A later level saves little of 128 KiB and takes several times as long; for what has to be compressed again. */
#define COMPRESSION_ZSTD_LEVEL_QUICK 3

/* In extent items. */
enum compression_algorithm { COMPRESSION_OFF = 0, COMPRESSION_LZ4 = 1, COMPRESSION_ZSTD = 2 };
#define COMPRESSION_ALGORITHM_LAST COMPRESSION_ZSTD

struct compression {
    uint8_t algorithm;
    uint8_t level; /* of zstd, 1 to COMPRESSION_ZSTD_LEVEL_MAX */
};

/* What one thread needs meanwhile: 256 KiB, and contexts that are made when they are first wanted. */
struct codec {
    uint8_t *stored;  /* COMPRESSION_BYTES_MAX bytes, as on the medium */
    uint8_t *content; /* as many, for whoever holds the codec */
    void *lz4;
    void *zstd_compressor;
    void *zstd_expander;
    struct codec *next;
};
/* NULL: no memory. */
struct codec *codec_new(void);
void codec_free(struct codec *codec);

/* As on the medium. */
struct compressed {
    const uint8_t *bytes;
    uint32_t blocks; /* 0: compressing saves none (or there was no memory for it, which costs space and nothing else) */
    uint8_t algorithm;
};
/* Compresses blocks into `stored`, which has room for COMPRESSION_BYTES_MAX, with zeros behind. */
struct compressed codec_compress(struct codec *codec, struct compression how, const uint8_t *content, uint32_t blocks,
                                 uint8_t *stored);
/* From codec->stored to `blocks` blocks of content. -EUCLEAN when it is not exactly that; -ENOMEM. */
int codec_expand(struct codec *codec, uint8_t algorithm, uint32_t stored_blocks, uint32_t blocks, uint8_t *content);

#endif
