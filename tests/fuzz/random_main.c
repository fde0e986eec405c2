/* Drives a fuzz target without guidance, where no libFuzzer is: each input is made by the target's own mutator, applied
 * a few times. An input that fails is printed, and can be run alone. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

#define INPUT_LENGTH_MAX 4096u
#define MUTATIONS_MAX 6u
/* Of processor time no input needs a hundredth; machines that run tests are busy. */
#define INPUT_SECONDS_MAX 60u

static uint64_t state;
static uint8_t input[INPUT_LENGTH_MAX];
static volatile size_t input_length;

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t length, size_t length_max)
{
    (void)length_max;
    for (uint64_t changes = 1 + fuzz_draw(&state, 3); length > 0 && changes > 0; changes--)
        bytes[fuzz_draw(&state, length)] = (uint8_t)fuzz_draw(&state, 256);
    return length;
}

/* Only what a signal handler may do. */
static void keep_input(void)
{
    static const char message[] = "fuzz: the input that failed is the last line, as hexadecimal digits\n";
    static const char digits[] = "0123456789abcdef";
    char line[2 * INPUT_LENGTH_MAX + 1];
    for (size_t i = 0; i < input_length; i++) {
        line[2 * i] = digits[input[i] >> 4];
        line[2 * i + 1] = digits[input[i] & 15];
    }
    line[2 * input_length] = '\n';
    if (write(2, message, sizeof message - 1) < 0 || write(2, line, 2 * input_length + 1) < 0)
        _exit(98);
}

static void on_signal(int number)
{
    static const char hang[] = "fuzz: an input took too long\n";
    if (number == SIGALRM && write(2, hang, sizeof hang - 1) < 0)
        _exit(98);
    keep_input();
    _exit(97);
}

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static int run_hexadecimal(const char *text)
{
    size_t length = strlen(text) / 2;
    for (size_t i = 0; i < length && i < sizeof input; i++) {
        unsigned byte;
        if (sscanf(text + 2 * i, "%2x", &byte) != 1)
            return 2;
        input[i] = (uint8_t)byte;
    }
    (void)LLVMFuzzerTestOneInput(input, length);
    printf("1 inputs\n");
    return 0;
}

int main(int argument_count, char **arguments)
{
    if (argument_count != 3) {
        fprintf(stderr, "usage: INPUTS SEED | input HEXADECIMAL\n");
        return 2;
    }
    signal(SIGALRM, on_signal);
    signal(SIGABRT, on_signal);
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(keep_input);
    if (strcmp(arguments[1], "input") == 0)
        return run_hexadecimal(arguments[2]);
    unsigned long inputs = strtoul(arguments[1], NULL, 0);
    state = strtoull(arguments[2], NULL, 0) * 2 + 1;
    for (unsigned long done = 0; done < inputs; done++) {
        size_t length = 0;
        for (uint64_t mutations = 1 + fuzz_draw(&state, MUTATIONS_MAX); mutations > 0; mutations--)
            length = LLVMFuzzerCustomMutator(input, length, sizeof input, (unsigned)fuzz_draw(&state, UINT32_MAX));
        input_length = length;
        alarm(INPUT_SECONDS_MAX);
        (void)LLVMFuzzerTestOneInput(input, length);
    }
    alarm(0);
    printf("%lu inputs\n", inputs);
    return 0;
}
