// What plays a GEMM to the array in simulation: not for synthesis.
//
// `stimulus` holds what the feeders give in each of up to CHUNK clock cycles. At each change of `go` the cycles from `first` to
// before `stop` are run, what the accumulators store in them is put down in `log`, and `done` changes.

`timescale 1ns / 1ps

module testbench #(
    parameter int ROWS = 4,
    parameter int COLS = 4,
    parameter int WEIGHT_BITS = 8,
    parameter int ACT_BITS = 8,
    parameter int ACT_SIGNED = 1,
    parameter int ACC_BITS = 32,
    parameter int ACC_DEPTH = 64,
    parameter int MULTIPLIER_LOCATIONS = 1,
    parameter int CHUNK = 128,
    parameter int TRACE = 0  // log the registers of all PEs as well
);

  localparam int PES = ROWS * COLS;
  localparam int PRODUCT_BITS = WEIGHT_BITS + ACT_BITS;
  localparam int ROW_BITS = $clog2(ACC_DEPTH);
  localparam int STIMULUS_BITS = 6 + ROW_BITS + 2 * ROWS + ROWS * ACT_BITS + COLS * WEIGHT_BITS;
  localparam int WRITE_BITS = 1 + ROW_BITS + ACC_BITS;
  localparam int STATE_BITS = 2 * WEIGHT_BITS + ACT_BITS + PRODUCT_BITS + ACC_BITS;
  localparam int LOG_BITS = COLS * WRITE_BITS + (TRACE != 0 ? PES * STATE_BITS : 0);

  logic go = 1'b0;
  logic done = 1'b0;
  logic [31:0] first = 0;
  logic [31:0] stop = 0;
  logic [CHUNK*STIMULUS_BITS-1:0] stimulus = '0;
  logic [CHUNK*LOG_BITS-1:0] log = '0;

  logic clock = 1'b0;
  logic reset, stream, load, load_last, write, add;
  logic [ROW_BITS-1:0] write_row;
  logic [ROWS-1:0] load_west, switch_west;
  logic [ROWS*ACT_BITS-1:0] activation_west;
  logic [COLS*WEIGHT_BITS-1:0] weight_north;
  wire [COLS-1:0] written;
  wire [COLS*ROW_BITS-1:0] written_row;
  wire [COLS*ACC_BITS-1:0] written_data;

  logic [PES-1:0] bypass = '0;
  logic [PES*WEIGHT_BITS-1:0] weight_invert = '0;
  logic [PES*WEIGHT_BITS-1:0] weight_clear = '0;
  logic [PES*WEIGHT_BITS-1:0] weight_set = '0;
  logic [PES*WEIGHT_BITS-1:0] weight_load_invert = '0;
  logic [PES*WEIGHT_BITS-1:0] weight_load_clear = '0;
  logic [PES*WEIGHT_BITS-1:0] weight_load_set = '0;
  logic [PES*ACT_BITS-1:0] activation_invert = '0;
  logic [PES*ACT_BITS-1:0] activation_clear = '0;
  logic [PES*ACT_BITS-1:0] activation_set = '0;
  logic [PES*PRODUCT_BITS-1:0] product_invert = '0;
  logic [PES*PRODUCT_BITS-1:0] product_clear = '0;
  logic [PES*PRODUCT_BITS-1:0] product_set = '0;
  logic [PES*ACC_BITS-1:0] psum_invert = '0;
  logic [PES*ACC_BITS-1:0] psum_clear = '0;
  logic [PES*ACC_BITS-1:0] psum_set = '0;
  logic [PES*MULTIPLIER_LOCATIONS-1:0] multiplier_invert = '0;
  logic [PES*MULTIPLIER_LOCATIONS-1:0] multiplier_clear = '0;
  logic [PES*MULTIPLIER_LOCATIONS-1:0] multiplier_set = '0;
  logic [COLS*ACC_BITS-1:0] accumulator_invert = '0;
  logic [COLS*ACC_BITS-1:0] accumulator_clear = '0;
  logic [COLS*ACC_BITS-1:0] accumulator_set = '0;

  systolic_array #(
      .ROWS(ROWS),
      .COLS(COLS),
      .WEIGHT_BITS(WEIGHT_BITS),
      .ACT_BITS(ACT_BITS),
      .ACT_SIGNED(ACT_SIGNED),
      .ACC_BITS(ACC_BITS),
      .ACC_DEPTH(ACC_DEPTH),
      .MULTIPLIER_LOCATIONS(MULTIPLIER_LOCATIONS)
  ) array (
      .clock(clock),
      .reset(reset),
      .stream(stream),
      .load(load),
      .load_last(load_last),
      .load_west(load_west),
      .switch_west(switch_west),
      .activation_west(activation_west),
      .weight_north(weight_north),
      .write(write),
      .add(add),
      .write_row(write_row),
      .bypass(bypass),
      .weight_invert(weight_invert),
      .weight_clear(weight_clear),
      .weight_set(weight_set),
      .weight_load_invert(weight_load_invert),
      .weight_load_clear(weight_load_clear),
      .weight_load_set(weight_load_set),
      .activation_invert(activation_invert),
      .activation_clear(activation_clear),
      .activation_set(activation_set),
      .product_invert(product_invert),
      .product_clear(product_clear),
      .product_set(product_set),
      .psum_invert(psum_invert),
      .psum_clear(psum_clear),
      .psum_set(psum_set),
      .multiplier_invert(multiplier_invert),
      .multiplier_clear(multiplier_clear),
      .multiplier_set(multiplier_set),
      .accumulator_invert(accumulator_invert),
      .accumulator_clear(accumulator_clear),
      .accumulator_set(accumulator_set),
      .written(written),
      .written_row(written_row),
      .written_data(written_data)
  );

  // Of each column: nothing, unless its accumulator was written.
  wire [COLS*WRITE_BITS-1:0] writes;
  for (genvar c = 0; c < COLS; c++) begin : column
    assign writes[c*WRITE_BITS+:WRITE_BITS] = written[c] === 1'b0 ? '0 :
        {written_data[c*ACC_BITS+:ACC_BITS], written_row[c*ROW_BITS+:ROW_BITS], written[c]};
  end

  wire [PES*PRODUCT_BITS-1:0] products;
  logic [PES*PRODUCT_BITS-1:0] products_of_cycle;
  wire [PES*STATE_BITS-1:0] states;
  if (TRACE != 0) begin : trace
    for (genvar r = 0; r < ROWS; r++) begin : row
      for (genvar c = 0; c < COLS; c++) begin : column
        localparam int PE = r * COLS + c;
        assign products[PE*PRODUCT_BITS+:PRODUCT_BITS] = array.row[r].column[c].element.product;
        assign states[PE*STATE_BITS+:STATE_BITS] = {
          array.row[r].column[c].element.psum_south,
          products_of_cycle[PE*PRODUCT_BITS+:PRODUCT_BITS],
          array.row[r].column[c].element.activation_east,
          array.row[r].column[c].element.weight_stored,
          array.row[r].column[c].element.weight_south
        };
      end
    end
  end

  // Nets settle before the clock edge, which comes at the end of a cycle; registers are looked at after it.
  always @(go) begin
    for (int cycle = first; cycle < stop; cycle++) begin
      {weight_north, activation_west, switch_west, load_west, write_row, add, write, load_last, load, stream, reset} =
          stimulus[cycle*STIMULUS_BITS+:STIMULUS_BITS];
      #1;
      log[cycle*LOG_BITS+:COLS*WRITE_BITS] = writes;
      products_of_cycle = products;
      clock = 1'b1;
      #1;
      if (TRACE != 0) log[cycle*LOG_BITS+COLS*WRITE_BITS+:PES*STATE_BITS] = states;
      clock = 1'b0;
    end
    done = ~done;
  end

endmodule
